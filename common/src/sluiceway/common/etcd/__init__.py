"""Coordination: the etcd adapter, the mirror of the keyspace, leader election and worker sessions."""
