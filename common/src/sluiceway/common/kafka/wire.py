"""Kafka's wire types and the shape that a connection expects of a request. Pure.

Written by hand rather than with the client library's schemas because of three things those can't do: parse a fetch
response without copying its records, name topics by id, and say which leader epoch we know.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from io import BytesIO
from typing import ClassVar, Generic, NoReturn, TypeVar

from aiokafka.errors import IncompatibleBrokerVersion

AnswerT = TypeVar("AnswerT")

NO_UUID = bytes(16)

_INT8, _INT16, _INT32, _INT64 = (struct.Struct(form) for form in (">b", ">h", ">i", ">q"))


class Writer:
    """Appends wire types; `flexible` chooses the compact forms of newer versions."""

    __slots__ = ("_parts", "flexible")

    def __init__(self, *, flexible: bool = False) -> None:
        self._parts = bytearray()
        self.flexible = flexible

    def int8(self, value: int) -> None:
        self._parts += _INT8.pack(value)

    def int16(self, value: int) -> None:
        self._parts += _INT16.pack(value)

    def int32(self, value: int) -> None:
        self._parts += _INT32.pack(value)

    def int64(self, value: int) -> None:
        self._parts += _INT64.pack(value)

    def uuid(self, value: bytes) -> None:
        self._parts += value

    def uvarint(self, value: int) -> None:
        while value > 0x7F:
            self._parts.append(value & 0x7F | 0x80)
            value >>= 7
        self._parts.append(value)

    def string(self, value: str) -> None:
        text = value.encode()
        if self.flexible:
            self.uvarint(len(text) + 1)
        else:
            self.int16(len(text))
        self._parts += text

    def count(self, items: int) -> None:
        """The length of an array, written before its items."""
        if self.flexible:
            self.uvarint(items + 1)
        else:
            self.int32(items)

    def tags(self) -> None:
        """No tagged fields."""
        if self.flexible:
            self._parts.append(0)

    def done(self) -> bytes:
        return bytes(self._parts)


class Reader:
    """Reads wire types from a response; `flexible` as in `Writer`. Truncated input raises an error."""

    __slots__ = ("_at", "_data", "flexible")

    def __init__(self, data: bytes, *, at: int = 0, flexible: bool = False) -> None:
        self._data = data
        self._at = at
        self.flexible = flexible

    def _take(self, form: struct.Struct) -> int:
        value: int = form.unpack_from(self._data, self._at)[0]
        self._at += form.size
        return value

    def int8(self) -> int:
        return self._take(_INT8)

    def int16(self) -> int:
        return self._take(_INT16)

    def int32(self) -> int:
        return self._take(_INT32)

    def int64(self) -> int:
        return self._take(_INT64)

    def uuid(self) -> bytes:
        return bytes(self.view(16))

    def uvarint(self) -> int:
        value = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 28:
                raise ValueError("a variable-length integer has more than five bytes")

    def view(self, length: int) -> memoryview:
        """The next bytes, not copied."""
        end = self._at + length
        if length < 0 or end > len(self._data):
            raise ValueError(f"the response ends {end - len(self._data)} bytes early")
        taken = memoryview(self._data)[self._at : end]
        self._at = end
        return taken

    def string(self) -> str:
        """A string; null reads as empty."""
        length = self.uvarint() - 1 if self.flexible else self.int16()
        return str(self.view(length), "utf-8") if length > 0 else ""

    def count(self) -> int:
        """The length of an array; null reads as empty."""
        return max(0, self.uvarint() - 1 if self.flexible else self.int32())

    def nullable_view(self) -> memoryview:
        """A field of bytes, not copied; null reads as empty."""
        return self.view(self.count())

    def int32s(self) -> list[int]:
        return [self.int32() for _ in range(self.count())]

    def tags(self) -> None:
        """Skips tagged fields."""
        if self.flexible:
            for _ in range(self.uvarint()):
                self.uvarint()
                self.view(self.uvarint())


class Request(ABC, Generic[AnswerT]):
    """A request in every version that we speak; the connection's broker decides which one is sent."""

    API_KEY: ClassVar[int]
    OLDEST: ClassVar[int]
    NEWEST: ClassVar[int]
    FLEXIBLE_FROM: ClassVar[int]

    @abstractmethod
    def write(self, to: Writer, version: int) -> None:
        """Writes the body."""

    @abstractmethod
    def read(self, of: Reader, version: int) -> AnswerT:
        """Reads the body of the answer."""

    def version(self, oldest: int, newest: int) -> int:
        """The newest version that both sides speak."""
        chosen = min(self.NEWEST, newest)
        if chosen < max(self.OLDEST, oldest):
            self._incompatible(oldest, newest)
        return chosen

    def prepare(self, offered: Mapping[int, tuple[int, int]]) -> PreparedRequest[AnswerT]:
        """What a connection sends, given the versions that its broker offers by API key.

        Raises:
            IncompatibleBrokerVersion: no version in common.
        """
        oldest, newest = offered.get(self.API_KEY, (-1, -1))
        return PreparedRequest(self, self.version(oldest, newest))

    def _incompatible(self, oldest: int, newest: int) -> NoReturn:
        raise IncompatibleBrokerVersion(
            f"the broker speaks versions {oldest} to {newest} of {type(self).__name__}, "
            f"Sluiceway {self.OLDEST} to {self.NEWEST} (Kafka 0.11 or newer is needed)"
        )


class PreparedRequest(Generic[AnswerT]):
    """A request in one version, with the methods that an aiokafka connection calls."""

    __slots__ = ("_flexible", "_request", "_version")

    def __init__(self, request: Request[AnswerT], version: int) -> None:
        self._request = request
        self._version = version
        self._flexible = version >= request.FLEXIBLE_FROM

    def build_request_header(self, correlation_id: int, client_id: str) -> EncodedHeader:
        writer = Writer()
        writer.int16(self._request.API_KEY)
        writer.int16(self._version)
        writer.int32(correlation_id)
        writer.string(client_id)
        writer.flexible = self._flexible  # the client id has the old form in every version
        writer.tags()
        return EncodedHeader(writer.done())

    def encode(self) -> bytes:
        writer = Writer(flexible=self._flexible)
        self._request.write(writer, self._version)
        return writer.done()

    def parse_response_header(self, stream: BytesIO) -> ResponseHeader:
        correlation_id: int = _INT32.unpack(stream.read(4))[0]
        return ResponseHeader(correlation_id)

    @property
    def RESPONSE_TYPE(self) -> PreparedRequest[AnswerT]:  # noqa: N802 (the connection's name for the decoder)
        return self

    def decode(self, stream: BytesIO) -> AnswerT:
        reader = Reader(stream.getvalue(), at=stream.tell(), flexible=self._flexible)
        reader.tags()  # the flexible response header's
        return self._request.read(reader, self._version)


class EncodedHeader:
    """A request header, ready to send."""

    __slots__ = ("_encoded",)

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded

    def encode(self) -> bytes:
        return self._encoded


class ResponseHeader:
    """What a connection reads of a response header."""

    __slots__ = ("correlation_id",)

    def __init__(self, correlation_id: int) -> None:
        self.correlation_id = correlation_id
