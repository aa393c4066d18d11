"""Whether a film that was disturbed is the film it would have been: each frame once, in order, bit for bit."""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from riverrun.client.errors import Unavailable
from riverrun.client.sync import Client
from riverrun.client.types import Frame
from riverrun.protos import riverrun_pb2 as pb


@dataclass(frozen=True)
class Kill:
    """A worker that was killed: when, by the clock of `Account`, and after which frame had come."""

    actor: str
    pid: int
    at: float
    after: Frame


@dataclass
class Account:
    """Every frame that came, on each of `ports`, and when. silence_s: the longest wait for one of the first port since
    the kill, ended by frame `ended_by`, `back_s` after it."""

    ports: Sequence[str]
    clock: Callable[[], float] = time.monotonic
    kill: Kill | None = None
    silence_s: float = 0.0
    back_s: float = 0.0
    ended_by: int | None = None

    def __post_init__(self) -> None:
        self._numbers: dict[str, list[int]] = {port: [] for port in self.ports}
        self._digests = {port: hashlib.sha256() for port in self.ports}
        self._last = self.clock()

    def add(self, frame: Frame) -> None:
        """The next frame, in the order in which they come."""
        self._numbers[frame.port].append(frame.number)
        self._digests[frame.port].update(frame.array.tobytes())
        if frame.port != self.ports[0]:
            return
        now = self.clock()
        if self.kill is not None:
            waited = now - max(self._last, self.kill.at)
            if waited > self.silence_s:
                self.silence_s, self.back_s, self.ended_by = waited, now - self.kill.at, frame.number
        self._last = now

    def sha256(self, port: str) -> str:
        """Of the bytes of all its frames in the order in which they came."""
        return self._digests[port].hexdigest()

    @property
    def duplicated(self) -> int:
        return sum(len(numbers) - len(set(numbers)) for numbers in self._numbers.values())

    def lost(self, total: int) -> int:
        """Of a film of `total` frames on each port."""
        return sum(len(set(range(total)) - set(numbers)) for numbers in self._numbers.values())


def kill_worker(rr: Client, session_id: str, after: Frame, clock: Callable[[], float] = time.monotonic) -> Kill:
    """Ends the process that holds the session's first stage with SIGKILL. It must be of this machine.

    Raises Unavailable if no actor that answers holds it.
    """
    stage = rr.session(session_id).stages[0]
    for actor in rr.status().actors:
        if actor.actor == stage.actor and actor.incarnation == stage.incarnation and actor.pid:
            os.kill(actor.pid, signal.SIGKILL)
            return Kill(actor.actor, actor.pid, clock(), after)
    raise Unavailable(f"no process of actor {stage.actor} is known", "UNAVAILABLE")


def undisturbed(
    rr: Client,
    graph: str,
    frames: int,
    at: Sequence[tuple[int, str]],
    *,
    ports: Sequence[str],
    prompt: str,
    seed: int,
    **params: Any,
) -> dict[str, str]:
    """The SHA-256 of the same film, by port, rendered by the same service with nobody disturbing it.

    at: (frame, prompt): what was in force from which frame on. ports: of pictures. Raises Unavailable if it can't be
    rendered.
    """
    with tempfile.TemporaryDirectory(prefix="riverrun-proof-") as folder:
        out = {port: f"{folder}/{port}/" for port in ports}
        job = rr.submit(graph, out, prompt=prompt, seed=seed, frames=frames, at=at, **params)
        *_, ended = rr.watch_job(job.job_id)
        if ended.state != pb.JOB_STATE_SUCCEEDED:
            raise Unavailable(f"the undisturbed film could not be rendered: {ended.reason}", "UNAVAILABLE")
        return {port: _digest(Path(folder, port)) for port in ports}


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as picture:
            digest.update(np.asarray(picture).tobytes())
    return digest.hexdigest()


def survival(account: Account, total: int, wanted: Mapping[str, str]) -> dict[str, Any]:
    """What became of a film of `total` frames whose worker was killed. wanted: of the undisturbed one, by port."""
    kill, found = account.kill, {port: account.sha256(port) for port in wanted}
    assert kill is not None
    return {
        "killed_actor": kill.actor,
        "killed_pid": kill.pid,
        "killed_after_frame": kill.after.number,
        "killed_at_s": round(kill.after.seconds, 3),
        "next_frame": account.ended_by,
        "next_frame_after_s": round(account.back_s, 3),
        "lost": account.lost(total),
        "duplicated": account.duplicated,
        "sha256": found,
        "sha256_undisturbed": dict(wanted),
        "equal": found == wanted,
    }
