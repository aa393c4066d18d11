"""Exceptions become codes: a table."""

import pytest
from google.rpc import error_details_pb2
from grpc import StatusCode as Code

from riverrun.actors.errors import Denied, NotFound, SessionFailed, meaning, status
from riverrun.actors.sessions import NoRoom
from riverrun.graphs.runner import SessionEnded
from riverrun.graphs.stage import StageGone, StaleEpoch, StepFailed, UnknownSession
from riverrun.models.base import BadRequest, Corrupt, Unavailable
from riverrun.protos.wire import WireError


@pytest.mark.parametrize(
    ("error", "code", "retry"),
    [
        (BadRequest("x"), Code.INVALID_ARGUMENT, False),
        (WireError("x"), Code.INVALID_ARGUMENT, False),
        (NotFound("x"), Code.NOT_FOUND, False),
        (Denied("x"), Code.PERMISSION_DENIED, False),
        (SessionEnded("x"), Code.FAILED_PRECONDITION, False),
        (NoRoom("x"), Code.RESOURCE_EXHAUSTED, True),
        (Unavailable("x"), Code.UNAVAILABLE, True),
        (StageGone("x"), Code.UNAVAILABLE, True),
        (UnknownSession("x"), Code.UNAVAILABLE, True),
        (StaleEpoch("x"), Code.ABORTED, True),
        (Corrupt("x"), Code.DATA_LOSS, False),
        (StepFailed("x"), Code.INTERNAL, False),
        (SessionFailed("x"), Code.INTERNAL, False),
        (KeyError("x"), Code.INTERNAL, False),
    ],
)
def test_codes(error, code, retry):
    assert meaning(error).code is code
    rich = status(error)
    assert rich.code == code.value[0]
    assert (len(rich.details) == 2) == retry
    info = error_details_pb2.ErrorInfo()
    assert rich.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("riverrun", meaning(error).reason)


def test_messages_are_one_line():
    assert status(BadRequest("a\n  b")).message == "a b"
    assert status(KeyError("k")).message == "internal error: KeyError: 'k'"
