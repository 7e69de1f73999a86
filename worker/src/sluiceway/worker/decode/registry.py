"""The shared schema of a pipeline's topic: read from etcd, widened by compare-and-swap.

Role: all partitions of the topic, on all workers, decode with versions of this one schema. Neighbours: `schema` decides
what a widening is; `blocks` asks for one. A version once written never changes, so a cached one may be
old but never wrong.
"""

from __future__ import annotations

from sluiceway.common.errors import EtcdUnavailable
from sluiceway.common.etcd.api import Etcd, Put, Txn, modified_at
from sluiceway.common.keys import Keys
from sluiceway.common.records import SchemaRecord, decode, encode
from sluiceway.worker.decode.schema import Fields, Limits, from_text, merge_fields, to_text

_MAX_TRIES = 100  # lost races: each one means that some other worker widened the schema


class SchemaRegistry:
    """The widening schema of one pipeline and topic. Shared by the topic's runners on one event loop."""

    def __init__(self, etcd: Etcd, keys: Keys, pipeline: str, topic: str, limits: Limits) -> None:
        self._etcd, self._key, self._limits = etcd, keys.schema(pipeline, topic), limits
        self._cached = SchemaRecord(version=0, fields={})

    def current(self) -> SchemaRecord:
        """The newest version that this process has seen; version 0 is the empty schema before any record."""
        return self._cached

    async def refresh(self) -> SchemaRecord:
        """The newest version that there is.

        Raises:
            EtcdUnavailable, AccessDenied: etcd can't be read.
        """
        return (await self._read())[0]

    async def widen(self, fields: Fields) -> SchemaRecord:
        """A version in which `fields` are merged, as far as the schema of the meantime and the limits allow.

        Raises:
            EtcdUnavailable: etcd didn't answer, or the schema was advanced by others all the time; try again.
            AccessDenied: etcd refused.
        """
        for _ in range(_MAX_TRIES):
            schema, revision = await self._read()
            known = {name: from_text(text) for name, text in schema.fields.items()}
            wider = merge_fields(known, fields, self._limits)
            if wider == known:
                return schema
            texts = {name: to_text(kind) for name, kind in wider.items()}
            next_schema = SchemaRecord(version=schema.version + 1, fields=texts)
            put = Put(self._key, encode(next_schema))
            if (await self._etcd.txn(Txn([modified_at(self._key, revision)], [put]))).succeeded:
                return self._remember(next_schema)
        raise EtcdUnavailable(f"the schema at {self._key} was changed {_MAX_TRIES} times by others; try again")

    async def _read(self) -> tuple[SchemaRecord, int]:
        item = await self._etcd.get(self._key)
        if item is None:
            return SchemaRecord(version=0, fields={}), 0
        return self._remember(decode(SchemaRecord, item.value)), item.mod_revision

    def _remember(self, schema: SchemaRecord) -> SchemaRecord:
        if schema.version > self._cached.version:
            self._cached = schema
        return schema
