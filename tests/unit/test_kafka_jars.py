"""Where Apache Kafka can't be had, one line says so and nothing fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sluiceway.cli.stack.jars import FOLDER_VARIABLE, jars_folder, kafka_available


def _fetch(path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": str(path), **variables}
    environment.pop("JAVA_HOME", None)
    command = [sys.executable, "-m", "sluiceway.cli.stack.kafka_jars"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def _program(path: Path, name: str, text: str) -> None:
    (path / name).write_text(f"#!/bin/sh\n{text}\n")
    (path / name).chmod(0o755)


def _one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.endswith("tests marked kafka will be skipped")
    return line


def test_without_java_and_a_way_to_install_it_one_line_says_so(tmp_path: Path) -> None:
    assert "Java and Maven missing" in _one_line(_fetch(tmp_path, **{FOLDER_VARIABLE: str(tmp_path / "jars")}))


def test_an_old_java_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "jars").mkdir()
    _program(tmp_path, "java", "echo 'openjdk version \"11.0.2\" 2019-01-15' >&2")
    assert "Java missing" in _one_line(_fetch(tmp_path, **{FOLDER_VARIABLE: str(tmp_path / "jars")}))


def test_when_the_jars_cannot_be_fetched_the_line_says_what_maven_said(tmp_path: Path) -> None:
    _program(tmp_path, "java", "echo 'openjdk version \"21.0.2\" 2024-01-16' >&2")
    _program(tmp_path, "mvn", "echo '[ERROR] no network'; exit 1")
    line = _one_line(_fetch(tmp_path, **{FOLDER_VARIABLE: str(tmp_path / "jars")}))
    assert "[ERROR] no network" in line
    assert not (tmp_path / "jars").exists()


def test_with_java_and_jars_nothing_is_said_and_nothing_run(tmp_path: Path) -> None:
    (tmp_path / "jars").mkdir()
    _program(tmp_path, "java", "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2")
    done = _fetch(tmp_path, **{FOLDER_VARIABLE: str(tmp_path / "jars")})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_jars_are_kept_below_the_project_that_we_are_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert jars_folder().parent == tmp_path / ".cache"
    assert kafka_available() is not None
