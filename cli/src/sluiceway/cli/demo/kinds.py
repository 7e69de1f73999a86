"""What one security event of each kind looks like.

Role: the vocabulary of the generator. Pure: `EVENT_KINDS` maps a kind to its share of the traffic and a function from a
random source and a host to the event's own fields. The fields that all kinds share are added by `generate`. Some fields
change their type between kinds or between events of one kind on purpose (`user`, `process`, `port`, `result`,
`detail`), as they do in real telemetry.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

Fields = dict[str, object]

COUNTER: Final = "@COUNTER@"  # replaced by a number that differs in every event

CHANGING: Final = frozenset({"user", "qtype", "result", "value", "severity", "detail", "entropy"})
"""Fields whose type differs between events of one kind."""

_USERS = ("SYSTEM", "alice", "bjørn", "carol.méndez", "svc-backup", "svc-deploy", "root", "田中", "nobody", "admin")
_IMAGES = (
    r"C:\Windows\System32\svchost.exe",
    r"C:\Windows\System32\lsass.exe",
    r"C:\Program Files\Vendor\agent.exe",
    "/usr/sbin/sshd",
    "/usr/bin/python3.11",
    "/opt/app/bin/server",
)
_COMMANDS = (
    'powershell.exe -NoProfile -EncodedCommand "SQBFAFgA"',
    "svchost.exe -k netsvcs -p -s Schedule",
    "sshd: [accepted]",
    'sh -c "curl -fsSL https://cdn.example.net/i.sh | sh"',
    "/usr/bin/python3.11 -m app --config=/etc/app.toml --level=100%",
)
_DOMAINS = ("update.example.com", "cdn.example.net", "xn--bcher-kva.example", "a1b2c3.dyn.example.org", "ntp.example")


def _hex(random: Random, digits: int) -> str:
    return f"{random.getrandbits(4 * digits):0{digits}x}"


def _address(random: Random) -> str:
    if random.random() < 0.1:
        return f"2001:db8::{random.getrandbits(16):x}:{random.getrandbits(16):x}"
    return f"10.{random.randrange(256)}.{random.randrange(256)}.{random.randrange(1, 255)}"


def _seldom(random: Random, odd: object, usual: object) -> object:
    return odd if random.random() < 0.05 else usual


def process_start(random: Random) -> Fields:
    return {
        "process": {"pid": COUNTER, "image": random.choice(_IMAGES), "sha256": _hex(random, 16)},
        "parent": {"pid": random.randrange(1, 9999), "image": random.choice(_IMAGES)},
        "command_line": random.choice(_COMMANDS),
        "user": _seldom(random, {"name": "SYSTEM", "sid": "S-1-5-18"}, random.choice(_USERS)),
    }


def network_flow(random: Random) -> Fields:
    return {
        "src": {"ip": _address(random), "port": random.randrange(1024, 65536)},
        "dst": {"ip": _address(random), "port": random.choice((22, 53, 80, 443, 445, 3389))},
        "proto": random.choice(("tcp", "udp")),
        "bytes_out": COUNTER,
        "bytes_in": random.randrange(10_000_000),
        "duration": round(random.expovariate(0.5), 6),
        "flags": random.sample(("SYN", "ACK", "PSH", "FIN", "RST"), random.randrange(1, 4)),
        "established": random.random() < 0.9,
    }


def dns(random: Random) -> Fields:
    answers = [_address(random) for _ in range(random.randrange(3))]
    return {
        "query": f"{_hex(random, 6)}.{random.choice(_DOMAINS)}",
        "qtype": random.choice(("A", "AAAA", "TXT", 65)),
        "rcode": random.choice((0, 0, 0, 3)),
        "txid": COUNTER,
        "answers": answers if answers or random.random() < 0.5 else None,
        "port": "53",
    }


def login(random: Random) -> Fields:
    return {
        "user": random.choice(_USERS),
        "result": random.choice(("success", "failure", 0, 3221225578)),
        "logon_type": random.choice((2, 3, 5, 10)),
        "source_ip": _address(random),
        "port": random.randrange(1024, 65536),
        "session": COUNTER,
        "mfa": {"used": random.random() < 0.5, "method": random.choice(("totp", "webauthn", None))},
    }


def file_change(random: Random) -> Fields:
    return {
        "path": rf"C:\Users\{random.choice(_USERS)}\AppData\Local\Temp\{_hex(random, 8)}.tmp",
        "action": random.choice(("create", "modify", "delete", "rename")),
        "size": COUNTER,
        "hashes": [{"algorithm": "sha256", "value": _hex(random, 64)}],
        "process": _seldom(random, random.choice(_IMAGES), {"pid": 4, "image": random.choice(_IMAGES)}),
        "entropy": random.choice((round(random.uniform(1, 8), 4), 7)),
    }


def registry_change(random: Random) -> Fields:
    return {
        "key": rf"HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Run\{_hex(random, 6)}",
        "value": random.choice((1, "%SystemRoot%\\system32\\x.dll", [1, 2, 3], None, True)),
        "process": {"pid": COUNTER, "image": random.choice(_IMAGES)},
        "user": random.choice(_USERS),
    }


def cloud_audit(random: Random) -> Fields:
    return {
        "event_name": random.choice(("AssumeRole", "PutObject", "CreateAccessKey", "DescribeInstances")),
        "aws": {
            "account": f"{random.randrange(10**12):012d}",
            "region": random.choice(("us-east-1", "eu-central-1", "ap-southeast-2")),
            "request": {"id": _hex(random, 24), "parameters": {"bucketName": f"logs-{_hex(random, 4)}", "maxKeys": 50}},
        },
        "sequence": COUNTER,
        "error_code": random.choice((None, None, "AccessDenied")),
        "resources": [{"arn": f"arn:aws:s3:::logs-{_hex(random, 4)}", "type": "AWS::S3::Bucket"}],
    }


def alert(random: Random) -> Fields:
    return {
        "rule": {"id": f"R{random.randrange(1000):04d}", "name": "Suspicious child of an office application"},
        "severity": random.choice(("low", "medium", "high", 3)),
        "score": COUNTER,
        "tactics": random.sample(("TA0001", "TA0002", "TA0003", "TA0008", "TA0011"), 2),
        "detail": random.choice(("see the rule", {"evidence": [_hex(random, 8)], "confidence": 0.85}, ["a", "b"])),
    }


EVENT_KINDS: Final[dict[str, tuple[float, Callable[[Random], Fields]]]] = {
    "process_start": (0.18, process_start),
    "network_flow": (0.30, network_flow),
    "dns": (0.22, dns),
    "login": (0.08, login),
    "file": (0.12, file_change),
    "registry": (0.05, registry_change),
    "cloud_audit": (0.04, cloud_audit),
    "alert": (0.01, alert),
}
