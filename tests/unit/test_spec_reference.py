"""What is published about specs agrees with the models."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from sluiceway.common.errors import SpecInvalid
from sluiceway.common.specs.documents import Source, parse
from sluiceway.common.specs.models import KINDS
from sluiceway.common.specs.reference import documents, json_schema

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("name", sorted(documents()))
def test_the_generated_docs_are_current(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == documents()[name], (
        "run `sluiceway schema --write-docs docs`"
    )


def test_the_examples_are_right_and_have_every_kind() -> None:
    found = parse([Source(path.name, path.read_bytes()) for path in EXAMPLES], {})
    assert {document.kind for document in found} == set(KINDS)


def test_the_published_schema_accepts_the_examples() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    for path in EXAMPLES:
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            validator.validate(document)


@pytest.mark.parametrize(
    "document",
    [
        {"metadata": {"name": "t"}, "spec": {"cluster": "c"}},
        {"kind": "Topic", "metadata": {"name": "t"}, "spec": {"cluster": "c", "more": 1}},
        {"kind": "Topic", "metadata": {"name": "t/"}, "spec": {"cluster": "c"}},
    ],
)
def test_the_published_schema_refuses_what_the_models_refuse(document: dict[str, object]) -> None:
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(document)
    with pytest.raises(SpecInvalid):
        parse([Source("a", json.dumps(document).encode())], {})


def test_each_kind_has_a_schema_of_its_own() -> None:
    for kind in KINDS:
        jsonschema.Draft202012Validator.check_schema(json_schema(kind))
