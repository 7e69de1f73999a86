"""Real security events through the decoder into Parquet: every record's values come back, for any reader."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from decoding import EMPTY, assert_delivered, decode, new_decoder
from sluiceway.worker.decode.restore import restore, same
from sluiceway.worker.decode.unify import unify

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "security-events"
BLOCK, CUT = 500, 4  # records a block, blocks a cut

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the sample data is absent ({DATA})")


def records_of(*names: str) -> list[bytes]:
    return [line for name in names for line in gzip.decompress((DATA / f"{name}.ndjson.gz").read_bytes()).splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["windows-ad", "windows-lsass", "windows-registry", "zeek-day1"])
def test_every_record_of_a_file_is_a_row_that_gives_it_back(name: str) -> None:
    records, decoder, schema = records_of(name), new_decoder(), EMPTY
    for start in range(0, len(records), BLOCK):
        values = records[start : start + BLOCK]
        block, schema = decode(values, schema, decoder, start)
        assert not block.dead
        assert_delivered(values, block, start)


def test_interleaved_kinds_in_files_of_several_schemas_are_read_by_duckdb_without_loss(tmp_path: Path) -> None:
    records = records_of("windows-ad", "zeek-day1", "windows-registry")
    records = random.Random(3).sample(records, 6000)
    decoder, schema, waiting = new_decoder(), EMPTY, list[pa.Table]()
    for start in range(0, len(records), BLOCK):
        block, schema = decode(records[start : start + BLOCK], schema, decoder, start)
        assert not block.dead
        waiting.append(block.table)
        if len(waiting) == CUT:
            pq.write_table(unify(waiting, schema, decoder.limits), tmp_path / f"{start}.parquet", compression="zstd")
            waiting.clear()
    assert not waiting
    files = f"read_parquet('{tmp_path}/*.parquet', union_by_name = true)"
    with duckdb.connect() as connection:
        found = connection.sql(f"select count(*), count(distinct _offset), any_value(_topic) from {files}").fetchall()
        rows: pa.Table = connection.sql(f"select * from {files} order by _offset").to_arrow_table()
    assert found == [(len(records), len(records), "events")]
    for record, row in zip(records, rows.to_pylist(), strict=True):
        assert same(json.loads(record), restore(row)), row
