"""Every error that Sluiceway raises on purpose, named by who must react.

Adapters wrap the errors of client libraries in these; nothing else leaks out of an adapter.
"""


class SluicewayError(Exception):
    """Base of all errors raised on purpose. The message says what happened and what to do next."""


class Retryable(SluicewayError):
    """The same call may succeed later: a server is down, slow or overloaded."""


class EtcdUnavailable(Retryable):
    """etcd did not answer in time. A write may or may not have happened: read before deciding."""


class Compacted(SluicewayError):
    """The history from the asked revision on is gone; list again.

    Args:
        revision: the oldest revision that can still be watched.
    """

    def __init__(self, revision: int) -> None:
        super().__init__(f"etcd history before revision {revision} is compacted; list again")
        self.revision = revision


class AccessDenied(SluicewayError):
    """Credentials are missing, wrong or lack a permission. An operator must act."""


class LeaseLost(SluicewayError):
    """The lease or the session is not ours any more: stop at once, drop buffers, touch nothing."""


class SourceUnavailable(Retryable):
    """The Kafka cluster, topic or partition can't be read now (unreachable, no leader, missing topic)."""


class OffsetOutOfRange(SluicewayError):
    """The wanted offset does not exist on the broker: records were removed, or the topic was re-created.

    Args:
        wanted: the offset asked for.
        earliest: the broker's first offset.
        latest: the broker's log end offset.
        recreated: the wanted offset belongs to a former topic of the same name.
    """

    def __init__(self, wanted: int, earliest: int, latest: int, *, recreated: bool = False) -> None:
        super().__init__(
            f"the topic was deleted and created again: offset {wanted} belongs to the former one, the new one has "
            f"{earliest} to {latest}; to deliver it, list it in the pipeline under a Topic spec of another name"
            if recreated
            else f"offset {wanted} is outside of the broker's range {earliest} to {latest}: records were removed; to "
            "go on without them, set on_offset_out_of_range: earliest (or latest), then `sluiceway retry`"
        )
        self.wanted, self.earliest, self.latest, self.recreated = wanted, earliest, latest, recreated


class SinkUnavailable(Retryable):
    """The sink can't be written now."""


class SinkUnfit(SluicewayError):
    """The sink can't give the guarantee that the pipeline asks for (for example no conditional writes)."""


class SpecInvalid(SluicewayError):
    """One or more specs are wrong. `problems` lists every one with its place."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Refused(SluicewayError):
    """An operator's request is refused; the message gives the reason and what to do."""
