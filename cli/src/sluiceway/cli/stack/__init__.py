"""Real servers on loopback, started by the project: etcd, Kafka, an S3 store, PostgreSQL, and our own services.

Role: the one place that starts processes, shared by the demo, `sluiceway dev` and the tests. Neighbours: `process`
(what all servers share) and a module a server. All of it is synchronous. It must not know what runs on the servers.
"""

from sluiceway.cli.stack.broker import EmbeddedBroker
from sluiceway.cli.stack.embedded import BrokerKind, EmbeddedStack
from sluiceway.cli.stack.etcd import EtcdCluster, EtcdServer
from sluiceway.cli.stack.kafka import KafkaBroker, KafkaCluster
from sluiceway.cli.stack.objectstore import ObjectStoreServer
from sluiceway.cli.stack.postgres import PostgresServer
from sluiceway.cli.stack.process import Server, ServerFailed
from sluiceway.cli.stack.service import PythonService

__all__ = [
    "BrokerKind",
    "EmbeddedBroker",
    "EmbeddedStack",
    "EtcdCluster",
    "EtcdServer",
    "KafkaBroker",
    "KafkaCluster",
    "ObjectStoreServer",
    "PostgresServer",
    "PythonService",
    "Server",
    "ServerFailed",
]
