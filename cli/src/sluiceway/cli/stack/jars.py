"""Apache Kafka's jars: fetched once with Maven into a cache folder, and whether they can be used.

Role: finds Java and the jars for `kafka`, and for `kafka_jars`, the command, it installs and fetches what is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from sluiceway.common.errors import SluicewayError

FOLDER_VARIABLE = "SLUICEWAY_KAFKA_JARS"
JAVA_AT_LEAST = 17
INSTALL_LIMIT_S = 600
FETCH_LIMIT_S = 600
_POM = Path(__file__).with_name("pom.xml")


class KafkaMissing(SluicewayError):
    """Apache Kafka can't be run here; the message is one line that says why."""


def kafka_available() -> str | None:
    """None when Apache Kafka can be started, otherwise the reason. It installs and fetches nothing."""
    if _java() is None:
        return f"no Java {JAVA_AT_LEAST} or newer"
    if not jars_folder().is_dir():
        return "its jars are not fetched (python -m sluiceway.cli.stack.kafka_jars)"
    return None


def jars_folder() -> Path:
    """Where the jars are, or will be: below the project we are in, else in the user's cache; a variable overrides."""
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given)
    here = Path.cwd()
    project = next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").is_file()), None)
    cache = project / ".cache" if project else Path.home() / ".cache" / "sluiceway"
    return cache / f"kafka-{_kafka_version()}"


def java_binary() -> str:
    """The absolute path of a Java that is new enough.

    Raises:
        KafkaMissing: there is none.
    """
    java = _java()
    if java is None:
        raise KafkaMissing(f"no Java {JAVA_AT_LEAST} or newer")
    return java


def fetch_jars() -> Path:
    """Makes sure that Java and the jars are there, installing what it may, and returns the jars' folder.

    Raises:
        KafkaMissing: they can't be had.
    """
    folder = jars_folder()
    lacks_maven = not folder.is_dir() and shutil.which("mvn") is None
    if _java() is None or lacks_maven:
        _install_java(with_maven=lacks_maven)
    if not folder.is_dir():
        _copy_jars(folder)
    return folder


def _kafka_version() -> str:
    found = re.search(r"<artifactId>kafka_[\d.]+</artifactId>\s*<version>([^<]+)<", _POM.read_text(encoding="utf-8"))
    assert found, "pom.xml names Kafka's version"
    return found.group(1)


def _java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    for java in filter(None, (home and f"{home}/bin/java", shutil.which("java"))):
        try:
            done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        found = re.search(r'version "(\d+)', done.stderr)
        if found and int(found.group(1)) >= JAVA_AT_LEAST:
            return str(Path(java).resolve())
    return None


def _install_java(*, with_maven: bool) -> None:
    wanted = "Java and Maven" if with_maven else "Java"
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        raise KafkaMissing(f"{wanted} missing, and only root on a Debian-like system can install it")
    packages = ["openjdk-17-jre-headless", *(["maven"] if with_maven else [])]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in ([apt, "-q", "update"], [apt, "-q", "install", "-y", "--no-install-recommends", *packages]):
        _run(step, limit_s=INSTALL_LIMIT_S, environment=environment, failure=f"{wanted} could not be installed")
    if _java() is None:
        raise KafkaMissing(f"no Java {JAVA_AT_LEAST} or newer, even after installing it")


def _copy_jars(folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaMissing("no Maven")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete, so that a folder with the final name has everything.
    with tempfile.TemporaryDirectory(prefix="kafka-", dir=folder.parent) as unfinished:
        jars = Path(unfinished) / "jars"
        step = [maven, "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies", f"-DoutputDirectory={jars}"]
        _run(step, limit_s=FETCH_LIMIT_S, environment=dict(os.environ), failure="its jars could not be fetched")
        try:
            jars.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise


def _run(command: list[str], *, limit_s: float, environment: dict[str, str], failure: str) -> None:
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KafkaMissing(f"{failure}: {type(error).__name__}") from error
    if done.returncode != 0:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise KafkaMissing(f"{failure}: {said[0].strip()[:200] if said else f'exit code {done.returncode}'}")
