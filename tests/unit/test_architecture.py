"""ARCHITECTURE.md is checked against the tree."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
INVARIANT = re.compile(r"INV-[A-Z]+-\d+")


def test_every_invariant_is_named_in_a_property_simulation_or_integration_test() -> None:
    listed = set(INVARIANT.findall((ROOT / "ARCHITECTURE.md").read_text()))
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    named = {invariant for path in tests for invariant in INVARIANT.findall(path.read_text())}
    assert len(listed) >= 11
    assert listed - named == set()
    assert named - listed == set()


def test_the_namespace_has_no_init_file() -> None:
    assert list(ROOT.glob("*/src/sluiceway/__init__.py")) == []


def test_every_member_is_typed() -> None:
    members = {"common", "scheduler", "worker", "client", "cli"}
    assert {path.parent.name for path in ROOT.glob("*/src/sluiceway/*/py.typed")} == members
