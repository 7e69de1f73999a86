"""Settings are read from the environment as people write them, and every problem is told at once."""

import pytest

from sluiceway.common.errors import SpecInvalid
from sluiceway.common.settings import ServiceSettings, load


@pytest.mark.parametrize("text", ["a:1,b:2", " a:1 , b:2", '["a:1", "b:2"]'])
def test_endpoints_are_listed_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SLUICEWAY_ETCD__ENDPOINTS", text)
    assert load(ServiceSettings).etcd.endpoints == ["a:1", "b:2"]


def test_every_problem_is_told_with_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEWAY_ETCD__TIMEOUT_S", "soon")
    monkeypatch.setenv("SLUICEWAY_HTTP_PORT", "-1")
    with pytest.raises(SpecInvalid) as caught:
        load(ServiceSettings, fleet="a b")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "setting fleet (SLUICEWAY_FLEET)",
        "setting etcd.timeout_s (SLUICEWAY_ETCD__TIMEOUT_S)",
        "setting http_port (SLUICEWAY_HTTP_PORT)",
    ]


@pytest.mark.parametrize("text", ["[not json", "not json"])
def test_settings_that_can_not_be_parsed_are_told(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SLUICEWAY_ETCD", text)
    with pytest.raises(SpecInvalid, match="etcd"):
        load(ServiceSettings)
