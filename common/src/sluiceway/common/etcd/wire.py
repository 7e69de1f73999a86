"""Between the contract's types and etcd's protobuf messages; and which failure means what.

The generated messages and stubs come from `etcd3aio`; nothing else of it is used (docs/adr/0002). No I/O here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from etcd3aio import _protobuf as pb

from sluiceway.common.errors import AccessDenied, Compacted, EtcdUnavailable, LeaseLost, SluicewayError
from sluiceway.common.etcd.api import (
    Compare,
    Delete,
    Event,
    Get,
    KeyValue,
    Op,
    Put,
    Relation,
    Target,
    Txn,
    TxnResult,
)

_RESULT = {
    Relation.EQUAL: pb.Compare.EQUAL,
    Relation.NOT_EQUAL: pb.Compare.NOT_EQUAL,
    Relation.GREATER: pb.Compare.GREATER,
    Relation.LESS: pb.Compare.LESS,
}
_TARGET = {
    Target.CREATE: pb.Compare.CREATE,
    Target.MOD: pb.Compare.MOD,
    Target.VERSION: pb.Compare.VERSION,
    Target.LEASE: pb.Compare.LEASE,
    Target.VALUE: pb.Compare.VALUE,
}
_TOKEN_REFUSED = ("invalid auth token", "revision of auth store is old", "user name is empty")
_LOGIN_REFUSED = ("authentication failed", "user name is empty", "permission denied")


def prefix_end(prefix: str) -> bytes:
    """The first key that does not start with `prefix`; etcd's mark for "to the end" if there is none."""
    encoded = prefix.encode().rstrip(b"\xff")
    return encoded[:-1] + bytes([encoded[-1] + 1]) if encoded else b"\0"


def prefix_start(prefix: str) -> bytes:
    return prefix.encode() or b"\0"


def key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def event(message: Any) -> Event:
    deleted = message.type == message.DELETE
    return Event(message.kv.key.decode(), message.kv.mod_revision, None if deleted else key_value(message.kv))


def txn_request(txn: Txn) -> Any:
    return pb.TxnRequest(
        compare=[_compare(compare) for compare in txn.compares],
        success=[_request_op(op) for op in txn.then],
        failure=[_request_op(op) for op in txn.otherwise],
    )


def txn_result(txn: Txn, response: Any, revision: int) -> TxnResult:
    """The response in the contract's form; nested responses carry no revision of their own."""
    ops = txn.then if response.succeeded else txn.otherwise
    results = [_result(op, each, revision) for op, each in zip(ops, response.responses, strict=True)]
    return TxnResult(response.succeeded, revision, results)


def delete_request(delete: Delete) -> Any:
    if not delete.prefix:
        return pb.DeleteRangeRequest(key=delete.key.encode())
    return pb.DeleteRangeRequest(key=prefix_start(delete.key), range_end=prefix_end(delete.key))


def put_request(put: Put) -> Any:
    return pb.PutRequest(key=put.key.encode(), value=put.value, lease=put.lease)


def token_refused(error: grpc.aio.AioRpcError) -> bool:
    """The call was not carried out because its token is unknown (etcd restarted) or out of date: log in, repeat."""
    return any(text in (error.details() or "") for text in _TOKEN_REFUSED)


def too_large(error: BaseException | None) -> bool:
    """The answer is beyond the largest message that this client takes."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return False
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (error.details() or "")


def translated(error: grpc.aio.AioRpcError, *, revision: int = 0) -> SluicewayError | ValueError:
    """What a failed call means to a caller. `revision`: the revision that the call wanted to read at."""
    code, details = error.code(), error.details() or ""
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return AccessDenied(f"etcd: {details}")
    if any(text in details for text in _LOGIN_REFUSED):
        return AccessDenied(f"etcd: {details}; check the user name, the password and the role")
    if "has been compacted" in details:
        return Compacted(revision + 1)
    if "requested lease not found" in details:
        return LeaseLost(f"etcd: {details}")
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return ValueError(f"etcd: {details}")
    return EtcdUnavailable(f"etcd: {code.name.lower()}: {details}")


def _compare(compare: Compare) -> Any:
    fields = {compare.target.value: compare.expected}
    return pb.Compare(
        result=_RESULT[compare.relation], target=_TARGET[compare.target], key=compare.key.encode(), **fields
    )


def _request_op(op: Op) -> Any:
    match op:
        case Put():
            return pb.RequestOp(request_put=put_request(op))
        case Delete():
            return pb.RequestOp(request_delete_range=delete_request(op))
        case Get():
            return pb.RequestOp(request_range=pb.RangeRequest(key=op.key.encode()))
        case Txn():
            return pb.RequestOp(request_txn=txn_request(op))


def _result(op: Op, response: Any, revision: int) -> KeyValue | TxnResult | int | None:
    match op:
        case Put():
            return None
        case Delete():
            return int(response.response_delete_range.deleted)
        case Get():
            return _first(response.response_range.kvs)
        case Txn():
            return txn_result(op, response.response_txn, revision)


def _first(kvs: Sequence[Any]) -> KeyValue | None:
    return key_value(kvs[0]) if kvs else None
