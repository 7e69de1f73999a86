"""What the runners of one process share, on local directories and the fake etcd."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from sluiceway.common.clock import SystemClock
from sluiceway.common.etcd.fake import FakeEtcd
from sluiceway.common.etcd.mirror import Mirror
from sluiceway.common.keys import Keys
from sluiceway.common.records import SpecRecord, encode
from sluiceway.common.specs.models import PipelineSpec
from sluiceway.worker.assembly import WRITERS, SharedParts
from sluiceway.worker.budget import ByteBudget

KEYS = Keys("test")


@asynccontextmanager
async def shared(etcd: FakeEtcd) -> AsyncIterator[SharedParts]:
    specs = Mirror(etcd, KEYS.specs)
    with ThreadPoolExecutor(1) as decoders:
        parts = SharedParts(
            worker="w",
            etcd=etcd,
            keys=KEYS,
            clock=SystemClock(),
            specs=specs,
            budget=ByteBudget(2**20),
            decoders=decoders,
            patience_s=1,
        )
        following = asyncio.create_task(specs.run())
        yield parts
        following.cancel()
        await asyncio.wait([following])
        await parts.close()
    await etcd.close()


def pipeline(sink: dict[str, object]) -> PipelineSpec:
    return PipelineSpec.model_validate({"topics": ["t"], "sink": sink})


async def test_a_sink_that_hangs_keeps_no_other_sink_waiting(tmp_path: Path) -> None:
    async with shared(FakeEtcd()) as parts:
        hung = await parts._store(pipeline({"url": f"file://{tmp_path}/hung"}))
        healthy = await parts._store(pipeline({"url": f"file://{tmp_path}/healthy"}))
        released = threading.Event()
        calls = [hung.writers.submit(released.wait, 20) for _ in range(2 * WRITERS)]
        async with asyncio.timeout(10):
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(healthy.writers, healthy.store.create, "k", b"", {})
        released.set()
        assert all(call.result() for call in calls)


async def test_a_sink_that_cannot_be_opened_stops_nothing_else(tmp_path: Path) -> None:
    etcd = FakeEtcd()
    for name, sink in (
        ("a", {"url": "s3://bucket", "s3": {"endpoint": "http://"}}),
        ("b", {"url": f"file://{tmp_path}/b"}),
    ):
        document: dict[str, object] = {
            "apiVersion": "sluiceway/v1",
            "kind": "Pipeline",
            "metadata": {"name": name},
            "spec": {"topics": ["t"], "sink": sink},
        }
        record = SpecRecord(kind="Pipeline", name=name, hash="h", document=document)
        await etcd.put(KEYS.spec("pipelines", name), encode(record))
    async with shared(etcd) as parts:
        warming = asyncio.create_task(parts.keep_warm())
        async with asyncio.timeout(10):
            while not (tmp_path / "b").exists():
                assert not warming.done()
                await asyncio.sleep(0.001)
        warming.cancel()
        await asyncio.wait([warming])
