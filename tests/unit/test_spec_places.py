"""YAML is read with places, within limits, and without surprises."""

import pytest

from sluiceway.common.specs import places


def read(text: str) -> tuple[list[object], list[str]]:
    nodes, problems = places.read("a.yaml", text.encode())
    return [node.plain() for node in nodes], [str(problem) for problem in problems]


def test_plain_scalars_mean_what_yaml_1_2_says() -> None:
    text = "[no, on, 1, -2, 0x1f, 1.5, 1e3, true, Null, ~, '1', 12:30, 2024-01-01, .inf, 1e999, 012]"
    expected = ["no", "on", 1, -2, 31, 1.5, 1000.0, True, None, None, "1", "12:30", "2024-01-01", ".inf", "1e999", 12]
    assert read(text) == ([expected], [])


def test_every_value_and_key_knows_its_place() -> None:
    nodes, _ = places.read("a.yaml", "a:\n  - ü: x\n".encode())
    inner = nodes[0].child("a")
    assert inner is not None
    element = inner.child(0)
    assert element is not None
    assert str(nodes[0].keys["a"]) == "a.yaml:1:1"
    assert str(element.keys["ü"]) == "a.yaml:2:5"
    leaf = element.child("ü")
    assert leaf is not None
    assert str(leaf.place) == "a.yaml:2:8"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a: !!python/object:os.system x",
            "a.yaml:1:4: expected no tag, found 'tag:yaml.org,2002:python/object:os.system'",
        ),
        ("a: 1\na: 2", "a.yaml:2:1: expected each key once, found 'a' again (first in line 1)"),
        ("[a]: 1", "a.yaml:1:1: expected a key that is text, found a list or mapping as key"),
        ("a: *b", "a.yaml:1:4: the alias *'b' can't be used: no anchor &'b' stands before it"),
        ("&a [*a]", "a.yaml:1:5: the alias *'a' can't be used: no anchor &'a' stands before it"),
        ("[" * 40, "a.yaml:1:33: expected at most 32 levels of nesting"),
        ("a: [1", "a.yaml:2:1: not YAML: did not find expected ',' or ']' while parsing a flow sequence"),
        ("a: b: c", "a.yaml:1:5: not YAML: mapping values are not allowed in this context"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, expected: str) -> None:
    assert read(text)[1] == [expected]


def test_text_that_is_not_utf_8_is_told_with_its_place() -> None:
    _, problems = places.read("a.yaml", b"a: 1\nb: \xff")
    assert [str(problem) for problem in problems] == ["a.yaml:2:4: expected UTF-8, found the byte 0xff"]


def test_anchors_mean_what_they_stand_for() -> None:
    assert read("a: &x {k: [1]}\nb: *x") == ([{"a": {"k": [1]}, "b": {"k": [1]}}], [])


def test_aliases_that_multiply_are_stopped() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    nodes, problems = read("\n".join(lines))
    assert nodes == []
    assert len(problems) == 1
    assert "expected at most 200,000 values, aliases counted as what they mean" in problems[0]


def test_aliases_that_nest_are_stopped() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 60)]
    assert "levels of nesting" in read("\n".join(lines))[1][0]


def test_a_text_that_is_too_large_is_refused_unread() -> None:
    _, problems = places.read("a.yaml", b"#" * (places.MAX_BYTES + 1))
    assert [str(problem) for problem in problems] == ["a.yaml:1:1: expected at most 4,194,304 bytes, found 4,194,305"]
