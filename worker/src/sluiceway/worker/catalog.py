"""The applied specs as a worker needs them: from a partition to everything that its runner is built from. Pure.

Role: resolves pipeline → topic → cluster on a snapshot of `spec/`. Neighbours: `assembly`. It must not read etcd.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from pydantic import ValidationError

from sluiceway.common.errors import SpecInvalid
from sluiceway.common.etcd.api import KeyValue
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.common.records import SpecRecord, decode
from sluiceway.common.specs.models import Cluster, ClusterSpec, Pipeline, PipelineSpec, Topic

DocumentT = TypeVar("DocumentT", Cluster, Topic, Pipeline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What one partition's runner is built from. `hash` changes when any of the specs behind it does."""

    pipeline: PipelineSpec
    topic: str  # the physical topic's name
    cluster_name: str
    cluster: ClusterSpec
    hash: str


def resolve(items: Mapping[str, KeyValue], keys: Keys, partition: PartitionId) -> Resolved:
    """The specs behind a partition.

    Raises:
        SpecInvalid: one of them is missing, or this version of the worker can't read it.
    """
    pipeline, pipeline_hash = _document(items, keys.spec("pipelines", partition.pipeline), Pipeline)
    topic, topic_hash = _document(items, keys.spec("topics", partition.topic), Topic)
    cluster, cluster_hash = _document(items, keys.spec("clusters", topic.spec.cluster), Cluster)
    joined = "/".join((pipeline_hash, topic_hash, cluster_hash))
    return Resolved(
        pipeline=pipeline.spec,
        topic=topic.spec.physical or partition.topic,
        cluster_name=topic.spec.cluster,
        cluster=cluster.spec,
        hash=hashlib.sha256(joined.encode()).hexdigest()[:16],
    )


def pipelines(items: Mapping[str, KeyValue], keys: Keys) -> list[PipelineSpec]:
    """Every applied pipeline that this version of the worker can read."""
    prefix, found = keys.spec("pipelines", ""), []
    for key in sorted(key for key in items if key.startswith(prefix)):
        with contextlib.suppress(SpecInvalid):
            found.append(_document(items, key, Pipeline)[0].spec)
    return found


def _document(items: Mapping[str, KeyValue], key: str, kind: type[DocumentT]) -> tuple[DocumentT, str]:
    item = items.get(key)
    if item is None:
        raise SpecInvalid([f"{kind.__name__} {key.rsplit('/', 1)[-1]!r} is not applied"])
    try:
        record = decode(SpecRecord, item.value)
        return kind.model_validate(record.document), record.hash
    except (msgspec.DecodeError, ValidationError) as error:
        raise SpecInvalid([f"{key}: this worker can't read the applied spec: {error}"]) from error
