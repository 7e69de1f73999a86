"""Object stores with create-only writes: S3, a local directory, and a fake for tests. See `api`."""
