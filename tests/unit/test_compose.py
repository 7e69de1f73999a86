"""The deployment files fit the compose specification and the code that they start."""

from __future__ import annotations

import importlib.util
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from sluiceway.common.settings import ServiceSettings, load
from sluiceway.scheduler.settings import SchedulerSettings
from sluiceway.worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, type[ServiceSettings]] = {"scheduler": SchedulerSettings, "worker": WorkerSettings}
SECRETS = {"SLUICEWAY_S3_ACCESS_KEY", "SLUICEWAY_S3_SECRET_KEY"}
MEMORY_UNITS = {"M": 1 << 20, "G": 1 << 30}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return document


def _ours(compose: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Services built here: name, then the member they are built from and the definition."""
    return {
        name: (service["build"]["dockerfile"].split("/")[0], service)
        for name, service in compose["services"].items()
        if "build" in service
    }


def _bytes(size: str) -> int:
    return int(size[:-1]) * MEMORY_UNITS[size[-1]]


def _dockerfile(member: str) -> str:
    return (ROOT / member / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def _setting(kind: type[BaseModel], path: list[str]) -> bool:
    """Whether a model has the nested field that an environment variable names."""
    field = kind.model_fields.get(path[0])
    if field is None:
        return False
    if len(path) == 1:
        return True
    return (
        isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and _setting(field.annotation, path[1:])
    )


def _variables_of(service: dict[str, Any]) -> dict[str, str]:
    variables = {name: str(value) for name, value in service["environment"].items()}
    return {name: value for name, value in variables.items() if name not in SECRETS}


def test_the_compose_file_fits_the_compose_specification(compose: dict[str, Any]) -> None:
    schema = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(compose, json.loads(schema.read_text(encoding="utf-8")))


def test_there_are_two_schedulers_and_three_workers_of_two_classes(compose: dict[str, Any]) -> None:
    members = [member for member, _ in _ours(compose).values()]
    assert (members.count("scheduler"), members.count("worker")) == (2, 3)
    classes = {s["environment"]["SLUICEWAY_WORKER_CLASS"] for m, s in _ours(compose).values() if m == "worker"}
    assert len(classes) == 2


def test_every_variable_is_a_setting_and_every_value_is_valid(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = set()
    for name, (member, service) in _ours(compose).items():
        variables = _variables_of(service)
        unknown = [
            variable
            for variable in variables
            if not _setting(SETTINGS[member], variable.removeprefix("SLUICEWAY_").lower().split("__"))
        ]
        assert not unknown, name
        with monkeypatch.context() as patched:
            for variable, value in variables.items():
                patched.setenv(variable, value)
            settings: Any = load(SETTINGS[member])
        assert settings.fleet == "compose"
        identities.add(settings.id)
    assert identities == set(_ours(compose))


def test_a_workers_limits_are_the_capacity_that_it_declares(compose: dict[str, Any]) -> None:
    for name, (member, service) in _ours(compose).items():
        if member == "worker":
            limits, declared = service["deploy"]["resources"]["limits"], service["environment"]
            assert float(limits["cpus"]) == float(declared["SLUICEWAY_CAPACITY__CPU"]), name
            assert _bytes(limits["memory"]) == int(declared["SLUICEWAY_CAPACITY__MEMORY"]), name


def test_a_worker_has_time_to_drain_before_it_is_killed(compose: dict[str, Any]) -> None:
    for member, service in _ours(compose).values():
        if member == "worker":
            grace_s = int(service["stop_grace_period"].removesuffix("s"))
            assert grace_s > float(service["environment"]["SLUICEWAY_DRAIN_TIMEOUT_S"])


def test_secrets_come_from_the_environment_only(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search("SECRET|PASSWORD|ACCESS_KEY", variable):
                assert re.fullmatch(r"\$\{SLUICEWAY_\w+:\?[^}]+\}", value), (name, variable)


def test_every_service_is_confined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        assert service.get("read_only") or name == "kafka", name
        if name != "volumes":  # it may only change owners
            assert service["user"] not in ("root", "0", "0:0"), name
            assert service["healthcheck"]["test"][0] == "CMD", name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name


def test_health_is_asked_where_the_service_listens(compose: dict[str, Any]) -> None:
    for _, service in _ours(compose).values():
        port = service["environment"]["SLUICEWAY_HTTP_PORT"]
        assert f"http://127.0.0.1:{port}/readyz" in service["healthcheck"]["test"][-1]
        assert all(published.endswith(f":{port}") for published in service.get("ports", ()))


def test_every_named_volume_and_dependency_exists(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert set(service.get("depends_on", {})) <= set(compose["services"])
        assert {volume.split(":")[0] for volume in service.get("volumes", ())} <= set(compose["volumes"])


@pytest.mark.parametrize("member", SETTINGS)
def test_a_dockerfile_copies_what_exists_and_runs_a_module_without_root(member: str) -> None:
    text = _dockerfile(member)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sources = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)]
    for source in (source for line in sources for source in line):
        assert (ROOT / source).exists(), source
        assert any(line == f"!{source}" or line.startswith(f"!{source}/") for line in ignored), source
    for project in re.findall(r" \./(\w+)", text.split("uv pip install")[1].splitlines()[0]):
        assert (ROOT / project / "pyproject.toml").exists(), project
    module = json.loads(re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)[0])[-1]
    assert importlib.util.find_spec(f"{module}.__main__"), module
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert "--constraint requirements.lock" in text


@pytest.mark.parametrize("member", SETTINGS)
def test_a_dockerfiles_settings_exist(member: str) -> None:
    variables = re.findall(r"\b(SLUICEWAY_\w+)=", _dockerfile(member))
    assert variables
    assert all(_setting(SETTINGS[member], v.removeprefix("SLUICEWAY_").lower().split("__")) for v in variables)


@pytest.mark.parametrize("member", SETTINGS)
def test_a_member_that_an_image_lacks_is_not_imported(member: str) -> None:
    other = {"scheduler": "worker", "worker": "scheduler"}[member]
    sources = list((ROOT / member / "src").rglob("*.py"))
    assert sources
    assert not any(f"sluiceway.{other}" in path.read_text(encoding="utf-8") for path in sources)
