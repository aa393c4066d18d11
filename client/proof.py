"""Whether a film that was disturbed is the film it would have been: each frame once, in order, bit for bit."""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    """Every frame that came, and when. silence_s: the longest wait for one since the kill, ended by frame `ended_by`,
    `back_s` after it."""

    clock: Callable[[], float] = time.monotonic
    numbers: list[int] = field(default_factory=list)
    kill: Kill | None = None
    silence_s: float = 0.0
    back_s: float = 0.0
    ended_by: int | None = None

    def __post_init__(self) -> None:
        self._digest = hashlib.sha256()
        self._last = self.clock()

    def add(self, frame: Frame) -> None:
        """The next frame, in the order in which they come."""
        self.numbers.append(frame.number)
        self._digest.update(frame.array.tobytes())
        now = self.clock()
        if self.kill is not None:
            waited = now - max(self._last, self.kill.at)
            if waited > self.silence_s:
                self.silence_s, self.back_s, self.ended_by = waited, now - self.kill.at, frame.number
        self._last = now

    @property
    def sha256(self) -> str:
        """Of all frames' bytes in the order in which they came."""
        return self._digest.hexdigest()

    @property
    def duplicated(self) -> int:
        return len(self.numbers) - len(set(self.numbers))

    def lost(self, total: int) -> int:
        """Of a film of `total` frames."""
        return len(set(range(total)) - set(self.numbers))


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
    rr: Client, graph: str, frames: int, at: Sequence[tuple[int, str]], *, prompt: str, seed: int, **params: Any
) -> str:
    """The SHA-256 of the same film rendered by the same service with nobody disturbing it.

    at: (frame, prompt): what was in force from which frame on. Raises Unavailable if it can't be rendered.
    """
    with tempfile.TemporaryDirectory(prefix="riverrun-proof-") as folder:
        job = rr.submit(graph, f"{folder}/", prompt=prompt, seed=seed, frames=frames, at=at, **params)
        *_, ended = rr.watch_job(job.job_id)
        if ended.state != pb.JOB_STATE_SUCCEEDED:
            raise Unavailable(f"the undisturbed film could not be rendered: {ended.reason}", "UNAVAILABLE")
        digest = hashlib.sha256()
        for path in sorted(Path(folder).glob("*.png")):
            with Image.open(path) as picture:
                digest.update(np.asarray(picture).tobytes())
        return digest.hexdigest()


def survival(account: Account, total: int, wanted: str) -> dict[str, Any]:
    """What became of a film of `total` frames whose worker was killed. wanted: the undisturbed one's SHA-256."""
    kill = account.kill
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
        "sha256": account.sha256,
        "sha256_undisturbed": wanted,
        "equal": account.sha256 == wanted,
    }
