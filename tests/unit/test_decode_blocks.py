"""Blocks decoded on threads against one shared schema in etcd."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from decoding import assert_delivered, block_of, new_decoder
from sluiceway.common.etcd.fake import FakeEtcd
from sluiceway.common.keys import Keys
from sluiceway.worker.decode.blocks import decode_block
from sluiceway.worker.decode.registry import SchemaRegistry
from sluiceway.worker.decode.unify import unify

KEYS = Keys("test")


@pytest.fixture
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def registry_on(etcd: FakeEtcd) -> SchemaRegistry:
    return SchemaRegistry(etcd, KEYS, "pipe", "events", new_decoder().limits)


async def test_a_widening_is_a_new_version_that_all_workers_share(threads: Executor) -> None:
    etcd = FakeEtcd()
    mine, theirs = registry_on(etcd), registry_on(etcd.connect())
    await decode_block(new_decoder(), block_of([b'{"a":1}']), mine, threads)
    assert (mine.current().version, mine.current().fields) == (1, {"a": "int64"})
    await decode_block(new_decoder(), block_of([b'{"b":1}']), theirs, threads)
    assert (theirs.current().version, theirs.current().fields) == (2, {"a": "int64", "b": "int64"})
    assert await mine.refresh() == theirs.current() == mine.current()


async def test_a_widening_that_another_worker_made_already_makes_no_version(threads: Executor) -> None:
    etcd = FakeEtcd()
    mine, theirs = registry_on(etcd), registry_on(etcd.connect())
    for registry in (mine, theirs):
        await decode_block(new_decoder(), block_of([b'{"a":1}']), registry, threads)
        assert registry.current().version == 1


async def test_partitions_that_widen_at_once_end_with_one_schema_that_holds_all(threads: Executor) -> None:
    etcd = FakeEtcd()
    registries = [registry_on(etcd.connect()) for _ in range(8)]
    streams = [
        [b'{"f%d":%d}' % (index % 5, index), b'{"a":%s}' % text] for index, text in enumerate([b"1", b"1.5"] * 4)
    ]
    streams[3].append(b'{"a":"x"}')
    blocks = await asyncio.gather(
        *(
            decode_block(new_decoder(), block_of(values), registry, threads)
            for values, registry in zip(streams, registries, strict=True)
        )
    )
    for values, block in zip(streams, blocks, strict=True):
        assert_delivered(values, block)
        assert not block.rescued
    newest = await registries[0].refresh()
    assert newest.fields == {"a": "string", **{f"f{index}": "int64" for index in range(5)}}
    table = unify([block.table for block in blocks], newest, new_decoder().limits)
    assert table.num_rows == sum(map(len, streams))


async def test_without_etcd_a_known_schema_still_decodes_and_a_widening_waits(threads: Executor) -> None:
    etcd = FakeEtcd()
    registry, decoder = registry_on(etcd), new_decoder()
    await decode_block(decoder, block_of([b'{"a":1}']), registry, threads)
    etcd.down = True
    assert (await decode_block(decoder, block_of([b'{"a":2}']), registry, threads)).schema_version == 1
    waiting = asyncio.create_task(decode_block(decoder, block_of([b'{"b":2}']), registry, threads))
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()
    etcd.down = False
    assert (await waiting).schema_version == 2
