"""The synchronous client: the asynchronous one on a background thread, method for method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from riverrun.client import changes
from riverrun.client.aio import AsyncClient
from riverrun.client.credentials import Tls
from riverrun.client.errors import BadRequest, Denied, Error, Unavailable
from riverrun.client.loop import LoopThread
from riverrun.client.stream import AsyncStream
from riverrun.client.types import Frame, Patience, Receipt
from riverrun.protos import riverrun_pb2 as pb

T = TypeVar("T")


def connect(
    address: str | None = None,
    patience: Patience | None = None,
    *,
    token: str | None = None,
    tls: Tls | bool | None = None,
) -> Client:
    """A client of the service at `address`: host:port, by default `RIVERRUN_ADDRESS` or this machine.

    token: by default `RIVERRUN_TOKEN`. tls: True, or the files to use; by default those of `RIVERRUN_CA`, `_CERT` and
    `_KEY`, and plain text without them.

    >>> with riverrun.connect() as rr:
    ...     for frame in rr.stream("generate", prompt="a large red ball on green grass at noon", seconds=2):
    ...         show(frame.array)
    """
    return Client(address, patience, token=token, tls=tls)


class Change:
    """A control on its way; see `riverrun.client.changes.Change`."""

    def __init__(self, loop: LoopThread, change: changes.Change) -> None:
        self._loop, self._change = loop, change

    @property
    def revision(self) -> int:
        return self._change.revision

    @property
    def receipt(self) -> Receipt | None:
        """Where it took effect, once known. Does not wait."""
        return self._change.receipt

    @property
    def error(self) -> Error | None:
        """Why it never will: it was refused, or the stream ended first. Does not wait."""
        return self._change.error

    def received(self, timeout: float | None = None) -> None:
        """Waits until the service has logged it. Raises Rejected, Error or TimeoutError."""
        self._loop.run(self._change.received(), timeout)

    def applied(self, timeout: float | None = None) -> Receipt:
        """Waits until it is in force; another thread must take the frames meanwhile. Raises as `received`."""
        return self._loop.run(self._change.applied(), timeout)


class Stream:
    """The frames of one session: `for frame in stream`. See `riverrun.client.stream.AsyncStream`."""

    def __init__(self, loop: LoopThread, stream: AsyncStream) -> None:
        self._loop, self._stream = loop, stream

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Frame:
        frame = self._loop.run(_next(self._stream))
        if frame is None:
            raise StopIteration
        return frame

    @property
    def session(self) -> pb.Session:
        """As it was created: id, outputs with their sizes, resume token."""
        return self._stream.session

    @property
    def session_id(self) -> str:
        return self._stream.session_id

    @property
    def ended_reason(self) -> str | None:
        """Why the service ended the session; None while it runs."""
        return self._stream.ended_reason

    @property
    def reconnects(self) -> int:
        return self._stream.reconnects

    def prompt(self, text: str) -> Change:
        """Changes the prompt at the next chunk boundary its embedding is there for."""
        return self._change(lambda: self._stream.prompt(text))

    def pause(self) -> Change:
        """Stops the session at a chunk boundary; its state stays."""
        return self._change(self._stream.pause)

    def resume(self) -> Change:
        """Goes on after `pause`."""
        return self._change(self._stream.resume)

    def set(self, parameters: Mapping[str, Any], stage: str = "") -> Change:
        """Changes parameters that the graph's models take while they run."""
        return self._change(lambda: self._stream.set(parameters, stage))

    def send(self, array: np.ndarray, seconds: float, port: str = "frames") -> int:
        """Puts a frame into an input of the graph, from another thread than the one that takes frames; its number."""
        return self._loop.run(self._stream.send(array, seconds, port))

    def finish(self) -> None:
        """No more frames go in: what is in the graph is flushed, and the stream ends after it."""
        self._loop.run(_called(self._stream.finish))

    def ping(self) -> float:
        """Seconds to the service and back."""
        return self._loop.run(self._stream.ping())

    def close(self) -> None:
        """Ends the session. Closing twice is no error."""
        self._loop.run(self._stream.close())

    def _change(self, make: Callable[[], changes.Change]) -> Change:
        return Change(self._loop, self._loop.run(_called(make)))


class Client:
    """A service, for callers that are not asynchronous; `with riverrun.connect() as rr`.

    loop: where it runs; its own by default. A process that also runs a service shares that service's.
    """

    def __init__(
        self,
        address: str | None = None,
        patience: Patience | None = None,
        loop: LoopThread | None = None,
        *,
        token: str | None = None,
        tls: Tls | bool | None = None,
    ) -> None:
        self._rr = AsyncClient(address, patience, token=token, tls=tls)
        self._own_loop = loop is None
        self._loop = loop or LoopThread("riverrun client")

    @property
    def address(self) -> str:
        return self._rr.address

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the streams that are still open, and the connections."""
        self._loop.run(self._rr.close())
        if self._own_loop:
            self._loop.stop()

    def stream(self, graph: str, **options: Any) -> Stream:
        """Opens a session and streams its frames; options as `AsyncClient.stream`."""
        return Stream(self._loop, self._loop.run(self._rr.stream(graph, **options)))

    def attach(self, session_id: str, resume_token: str = "", **options: Any) -> Stream:
        """Streams a running session, as its controller with its token, else as a viewer."""
        return Stream(self._loop, self._loop.run(self._rr.attach(session_id, resume_token, **options)))

    def sessions(self, include_ended: bool = False) -> list[pb.Session]:
        return self._loop.run(self._rr.sessions(include_ended))

    def session(self, session_id: str) -> pb.Session:
        return self._loop.run(self._rr.session(session_id))

    def close_session(self, session_id: str, reason: str = "") -> pb.Session:
        return self._loop.run(self._rr.close_session(session_id, reason))

    def suspend_session(self, session_id: str, reason: str = "") -> pb.Session:
        return self._loop.run(self._rr.suspend_session(session_id, reason))

    def resume_session(self, session_id: str, resume_token: str) -> pb.Session:
        return self._loop.run(self._rr.resume_session(session_id, resume_token))

    def migrate_session(self, session_id: str, stage: str = "", actor: str = "") -> pb.Session:
        return self._loop.run(self._rr.migrate_session(session_id, stage, actor))

    def drain(self, target: str, deadline: float = 60.0, undo: bool = False) -> pb.DrainResponse:
        return self._loop.run(self._rr.drain(target, deadline, undo))

    def upgrade(self, actor: str, deadline: float = 60.0) -> pb.UpgradeResponse:
        return self._loop.run(self._rr.upgrade(actor, deadline))

    def freeze(self, thaw: bool = False) -> None:
        self._loop.run(self._rr.freeze(thaw))

    def why(self, session_id: str) -> list[pb.Decision]:
        return self._loop.run(self._rr.why(session_id))

    def models(self, start: Sequence[str] = ()) -> list[pb.Model]:
        return self._loop.run(self._rr.models(start))

    def graphs(self) -> list[pb.Graph]:
        return self._loop.run(self._rr.graphs())

    def graph(self, name: str) -> pb.Graph:
        return self._loop.run(self._rr.graph(name))

    def status(self) -> pb.StatusResponse:
        return self._loop.run(self._rr.status())

    def reachable(self, seconds: float = 2.0) -> bool:
        """Whether a riverrun service answers there within `seconds`."""
        try:
            self._loop.run(self._rr.status(seconds))
        except Denied:
            return True
        except (Unavailable, BadRequest):  # nobody, or another gRPC service at the same port
            return False
        return True

    def submit(self, graph: str, out: str | Path | Mapping[str, str | Path], **options: Any) -> pb.Job:
        """Renders to a file with no client attached; options as `AsyncClient.submit`."""
        return self._loop.run(self._rr.submit(graph, out, **options))

    def jobs(self) -> list[pb.Job]:
        return self._loop.run(self._rr.jobs())

    def job(self, job_id: str) -> pb.Job:
        return self._loop.run(self._rr.job(job_id))

    def cancel_job(self, job_id: str) -> pb.Job:
        return self._loop.run(self._rr.cancel_job(job_id))

    def watch_job(self, job_id: str) -> Iterator[pb.Job]:
        """The job now and after each change, until it has ended."""
        watch = self._rr.watch_job(job_id)
        while (job := self._loop.run(_next(watch))) is not None:
            yield job


async def _next(items: Any) -> Any:
    try:
        return await anext(items)
    except StopAsyncIteration:
        return None


async def _called(make: Callable[[], T]) -> T:
    return make()
