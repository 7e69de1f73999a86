"""The specs that operators write: Cluster, Topic, Pipeline.

Pydantic models of the documents' `spec` part and of the envelope around it; the published JSON Schema and the reference
in the docs are generated from them. Reading YAML and naming the place of an error is `documents`' job. Everything here
is pure.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

API_VERSION: Final = "sluiceway/v1"
SECRET_FORMAT: Final = "secret-reference"  # noqa: S105 (a format's name): fields whose value no message may repeat

Name = Annotated[
    str,
    StringConstraints(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,198}[a-zA-Z0-9])?$", max_length=200),
    Field(description="A name: letters, digits, dots, underscores and dashes, first and last a letter or digit."),
]
KafkaTopic = Annotated[
    str,
    StringConstraints(pattern=r"^[a-zA-Z0-9._-]{1,249}$"),
    Field(description="A Kafka topic's name: letters, digits, dots, underscores and dashes, at most 249."),
]
SecretRef = Annotated[
    str,
    StringConstraints(pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+)$"),
    Field(
        description="`env:NAME` or `file:/absolute/path`: where each process reads the secret, never the secret.",
        json_schema_extra={"format": SECRET_FORMAT},
    ),
]


def _port(address: str) -> str:
    if not 0 < int(address.rpartition(":")[2]) < 2**16:
        raise ValueError("the port must be from 1 to 65535")
    return address


HostPort = Annotated[
    str,
    StringConstraints(pattern=r"^(\[[0-9A-Fa-f:]+\]|[^:\s/]+):\d{1,5}$"),
    AfterValidator(_port),
    Field(description="`host:port`, for example `kafka-1.example.com:9092`."),
]


def _plain_path(url: str) -> str:
    scheme, _, rest = url.partition("://")
    first, *parts = rest.rstrip("/").split("/")
    if scheme == "file" and not parts:
        raise ValueError("the directory must lie below the root")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError("the path must have no empty, `.` or `..` part: one place has one name")
    if any(not char.isprintable() or char in "*?[]{}\\" for char in rest):
        raise ValueError(
            "the path must have no control characters and none of *?[]{}\\: listings take those as patterns"
        )
    return f"{scheme}://{'/'.join([first, *parts])}"


SinkUrl = Annotated[
    str,
    StringConstraints(pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?|file:///.+)$"),
    AfterValidator(_plain_path),
    Field(description="`s3://bucket/prefix` or `file:///absolute/directory`; no other pipeline may write in or below."),
]
Folder = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,98}$"),
    Field(description="One folder's name: letters, digits, dots, underscores and dashes."),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Sasl(_Model):
    """SASL credentials."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
    username: str
    password: SecretRef


class Tls(_Model):
    """TLS to the brokers. Without `ca` the system's certificates are trusted."""

    ca: SecretRef | None = None
    certificate: SecretRef | None = Field(default=None, description="client certificate, for mutual TLS")
    key: SecretRef | None = Field(default=None, description="client key, for mutual TLS")

    @model_validator(mode="after")
    def _both_or_neither(self) -> Tls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: give both or neither")
        return self


class ClusterSpec(_Model):
    """One Kafka-compatible cluster."""

    bootstrap: list[HostPort] = Field(min_length=1, description="brokers to ask first")
    sasl: Sasl | None = None
    tls: Tls | None = Field(default=None, description="present (also as `{}`): connect with TLS")


class TopicSpec(_Model):
    """An existing physical topic on one cluster."""

    cluster: Name
    physical: KafkaTopic | None = Field(
        default=None, description="the topic's name on the cluster; the spec's name by default"
    )


class S3(_Model):
    """How to reach an S3-compatible store. Without keys, the process's own AWS credentials are used."""

    endpoint: str | None = Field(default=None, pattern=r"^https?://", description="for stores other than AWS")
    region: str = "us-east-1"
    access_key: SecretRef | None = None
    secret_key: SecretRef | None = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> S3:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key go together: give both or neither")
        return self


class ParquetSink(_Model):
    """Parquet files on an object store or in a local directory."""

    kind: Literal["parquet"] = "parquet"
    url: SinkUrl
    s3: S3 | None = None
    compression: Literal["zstd", "snappy", "gzip", "none"] = "zstd"


class CutPolicy(_Model):
    """When a partition's buffered records become files: whichever limit is reached first."""

    max_bytes: int = Field(default=64 * 2**20, ge=2**10, description="bytes of records as they came from Kafka")
    max_records: int = Field(default=1_000_000, ge=1)
    max_age_s: float = Field(default=60.0, gt=0, description="seconds since the oldest buffered record was fetched")


class JsonFormat(_Model):
    """JSON objects, one a record."""

    kind: Literal["json"] = "json"
    max_record_bytes: int = Field(
        default=16 * 2**20, ge=2, description="a larger record becomes a dead letter instead of being parsed"
    )
    max_columns: int = Field(default=2000, ge=1, description="further fields go to `_rescued`")


class Origin(_Model):
    """The columns that say where a row comes from. An empty name leaves the column out."""

    topic: str = "_topic"
    epoch: str = "_epoch"
    partition: str = "_partition"
    offset: str = "_offset"
    timestamp: str = "_timestamp"
    key: str = "_key"

    @model_validator(mode="after")
    def _names_differ(self) -> Origin:
        used = [
            name for name in (self.topic, self.epoch, self.partition, self.offset, self.timestamp, self.key) if name
        ]
        if len(set(used)) != len(used):
            raise ValueError("two columns have the same name")
        return self


class DeadLetterPolicy(_Model):
    """Where records go that can't be delivered, and when that is a wrong spec rather than wrong records."""

    prefix: Folder = Field(default="_dead_letters", description="folder below the sink's url")
    max_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="when more than this share of at least `min_records` records fails, the partition is released "
        "instead: a wrong spec must not empty a topic into the dead letters; 1 turns that off",
    )
    min_records: int = Field(default=1000, ge=1)


class PlacementPolicy(_Model):
    """Which workers may hold this pipeline's partitions."""

    worker_class: str | None = None
    labels: dict[str, str] = Field(default_factory=dict, description="a worker must carry all of these")


class PipelineSpec(_Model):
    """Topics into one sink."""

    topics: list[Name] = Field(min_length=1)
    sink: ParquetSink
    format: JsonFormat = JsonFormat()
    cut: CutPolicy = CutPolicy()
    origin: Origin = Origin()
    dead_letters: DeadLetterPolicy = DeadLetterPolicy()
    placement: PlacementPolicy = PlacementPolicy()
    start: Literal["earliest", "latest"] = Field(
        default="earliest", description="where a partition without progress starts"
    )
    on_offset_out_of_range: Literal["fail", "earliest", "latest"] = Field(
        default="fail", description="`fail` quarantines the partition with the facts; the others record the gap as loss"
    )
    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    paused: bool = False

    @model_validator(mode="after")
    def _topics_once(self) -> PipelineSpec:
        if len(set(self.topics)) != len(self.topics):
            twice = sorted({name for name in self.topics if self.topics.count(name) > 1})
            raise ValueError(f"topics names {', '.join(twice)} more than once")
        return self


class Metadata(_Model):
    """What a document is called."""

    name: Name
    labels: dict[str, str] = Field(default_factory=dict)


class _Document(_Model):
    """The envelope that every kind shares."""

    apiVersion: Literal["sluiceway/v1"] = API_VERSION  # noqa: N815 (the field's name in the YAML)
    metadata: Metadata


class Cluster(_Document):
    """A Kafka-compatible cluster under a name that topics refer to."""

    kind: Literal["Cluster"] = "Cluster"
    spec: ClusterSpec


class Topic(_Document):
    """A topic under a name that pipelines refer to."""

    kind: Literal["Topic"] = "Topic"
    spec: TopicSpec


class Pipeline(_Document):
    """Topics that are delivered into one sink."""

    kind: Literal["Pipeline"] = "Pipeline"
    spec: PipelineSpec


Document = Cluster | Topic | Pipeline
KINDS: dict[str, type[Cluster] | type[Topic] | type[Pipeline]] = {
    "Cluster": Cluster,
    "Topic": Topic,
    "Pipeline": Pipeline,
}
PLURALS = {"Cluster": "clusters", "Topic": "topics", "Pipeline": "pipelines"}
