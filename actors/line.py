"""A line between a gateway and a stage actor of its machine: a step and its reply over a loopback socket.

A call through Ray costs 1.3 ms of both processes' time at least, and its object store more for a frame of a megabyte;
the same bytes over a socket cost a tenth (docs/performance.md). A line carries one request at a time, so a session has
its own. It promises nothing: whoever finds it broken asks again through Ray, where a step that was made already
returns the kept reply.

Both ends are our own processes, so what travels is pickled, arrays beside it unpacked. The actor reads nothing of a
caller that does not begin with the key, which only Ray hands out.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import pickle
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from riverrun.actors.raised import portable
from riverrun.models.base import Corrupt, one_line

KEY_BYTES = 32
KEY_S = 5.0
"""A caller sends the key, all of it, within so long."""

MAX_STRANGERS = 32
"""Callers that have not sent the key yet; one more is sent away, and asks through Ray."""

LEAST_S = 1e-3
RETRY_S = 0.1
"""After a line that could not be taken; a thread that gave up would leave callers waiting for ever."""

_CLOSED = (errno.EBADF, errno.EINVAL)
"""What `accept` says of a socket that was closed, or shut down."""

SOCKET_BYTES = 4 << 20
"""Wished for the socket's buffers: a frame goes in without waiting for the other side."""

_COUNTS = struct.Struct(
    "<II"
)  # bytes of the pickle, number of arrays; then the bytes of each array, the pickle, arrays


@dataclass(frozen=True)
class LinePlace:
    """Where an actor answers. node: Ray's name of its machine: a line leads to no other."""

    node: str
    port: int
    key: bytes


class LineServer:
    """The actor's end. answer: called with each request, on a thread of its connection; what it raises is sent back."""

    def __init__(self, node: str, answer: Callable[[Any], Any]) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._strangers = threading.BoundedSemaphore(MAX_STRANGERS)
        self.place = LinePlace(node, self._socket.getsockname()[1], secrets.token_bytes(KEY_BYTES))
        threading.Thread(target=self._accept, name="line", daemon=True).start()

    def close(self) -> None:
        """Takes no new lines."""
        with suppress(OSError):  # some systems refuse it; elsewhere it is what wakes `accept`
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._socket.accept()
            except OSError as error:
                if self._socket.fileno() < 0 or error.errno in _CLOSED:
                    return
                time.sleep(RETRY_S)  # no file handle is free, or the caller has left: others still wait
                continue
            if not self._strangers.acquire(blocking=False):
                caller.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(caller,), name="line", daemon=True).start()
            except RuntimeError:  # no more threads: the caller sees a broken line and asks through Ray
                self._strangers.release()
                caller.close()

    def _serve(self, caller: socket.socket) -> None:
        """One connection, until the other side closes it."""
        with caller, suppress(OSError):  # the gateway is gone, or has given up this line
            _tune(caller)
            if not self._is_known(caller):
                return
            while True:
                self._reply(caller, _receive(caller))

    def _is_known(self, caller: socket.socket) -> bool:
        """Whether it sends the key in time. Raises OSError."""
        try:
            return hmac.compare_digest(_read(caller, KEY_BYTES, time.monotonic() + KEY_S), self.place.key)
        finally:
            caller.settimeout(None)
            self._strangers.release()

    def _reply(self, caller: socket.socket, request: Any) -> None:
        try:
            answer = (True, self._answer(request))
        except Exception as error:  # noqa: BLE001 - it is raised where the request came from
            answer = (False, portable(error))
        for part in _packed(answer):
            caller.sendall(part)


class Line:
    """The gateway's end. One call at a time; after a call that failed or was cancelled it is closed."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    @staticmethod
    async def to(place: LinePlace) -> Line:
        """Raises OSError."""
        connected = socket.socket()
        connected.setblocking(False)
        _tune(connected)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(connected, ("127.0.0.1", place.port))
            await loop.sock_sendall(connected, place.key)
        except BaseException:
            connected.close()
            raise
        return Line(connected)

    async def call(self, request: Any) -> Any:
        """The answer, or what the other side raised. Raises OSError where the line is broken, Corrupt for an answer of
        classes that are not known here."""
        try:
            loop = asyncio.get_running_loop()
            for part in _packed(request):
                await loop.sock_sendall(self._socket, part)
            counts = await self._read(_COUNTS.size)
            sizes = _sizes(counts, await self._read(_COUNTS.unpack(counts)[1] * 8))
            head, *arrays = [await self._read(size) for size in sizes]
        except BaseException:
            self.close()
            raise
        try:
            good, answer = pickle.loads(head, buffers=arrays)
        except (ImportError, AttributeError, TypeError) as error:
            raise Corrupt(f"the answer can't be read here: {one_line(str(error))}") from None
        if not good:
            raise answer
        return answer

    def close(self) -> None:
        """Closing twice is no error."""
        self._socket.close()

    async def _read(self, size: int) -> bytearray:
        loop, data = asyncio.get_running_loop(), bytearray(size)
        left = memoryview(data)
        while left:
            left = left[_some(await loop.sock_recv_into(self._socket, left)) :]
        return data


def _packed(message: Any) -> list[Any]:
    """What goes over the socket, in order: everything small as one, then each array as it lies."""
    arrays: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
    views = [array.raw() for array in arrays]
    sizes = struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views))
    return [_COUNTS.pack(len(head), len(views)) + sizes + head, *views]


def _sizes(counts: bytes | bytearray, sizes: bytes | bytearray) -> tuple[int, ...]:
    """Of the pickle and of each array."""
    head, arrays = _COUNTS.unpack(counts)
    return (head, *struct.unpack(f"<{arrays}Q", sizes))


def _receive(caller: socket.socket) -> Any:
    counts = _read(caller, _COUNTS.size)
    sizes = _sizes(counts, _read(caller, _COUNTS.unpack(counts)[1] * 8))
    head, *arrays = [_read(caller, size) for size in sizes]
    return pickle.loads(head, buffers=arrays)


def _read(caller: socket.socket, size: int, until: float | None = None) -> bytearray:
    """Raises OSError, also when that takes until after `until` (seconds of `time.monotonic`)."""
    data = bytearray(size)
    left = memoryview(data)
    while left:
        if until is not None:
            caller.settimeout(max(until - time.monotonic(), LEAST_S))
        left = left[_some(caller.recv_into(left)) :]
    return data


def _some(count: int) -> int:
    if not count:
        raise ConnectionError("the other side closed the line")
    return count


def _tune(end: socket.socket) -> None:
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        end.setsockopt(socket.SOL_SOCKET, buffer, SOCKET_BYTES)
