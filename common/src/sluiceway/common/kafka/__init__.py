"""The Kafka adapter: nothing of a client library leaks out of it.

`cluster` is its face (`connect`, `KafkaCluster`); `connections` holds the sockets; `protocol` and `wire` are the
requests in bytes; `security` turns a spec's references into credentials; `failures` turns error codes into our errors.
"""

from sluiceway.common.kafka.cluster import KafkaCluster, Leader, TopicLayout, connect
from sluiceway.common.kafka.protocol import TopicPartition

__all__ = ["KafkaCluster", "Leader", "TopicLayout", "TopicPartition", "connect"]
