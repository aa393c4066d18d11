"""A synthetic model that can be told to kill somebody the moment a State is prepared for, copied out or restored.

A file `<folder>/<moment>-<pid of the actor>` holds the pid to be killed; it works once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from riverrun.models.base import Description, Snapshot
from riverrun.models.synthetic import Synthetic, SyntheticParams, SyntheticState

COMMIT_S = 0.004
"""Between a restore and the writing of the record that follows it."""


class MortalState(SyntheticState):
    folder = Path()

    def lend(self) -> Snapshot:
        if _is_called_by("pack"):  # a checkpoint reads it too
            strike(self.folder, "export")
        return super().lend()


class Mortal(Synthetic):
    """folder: where it looks for whom to kill."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def describe(self, params: SyntheticParams) -> Description:
        if _is_called_by("prepare"):
            strike(self.folder, "prepare")
        return super().describe(params)

    def open(self, params: SyntheticParams, seed: int) -> SyntheticState:
        return self._ours(super().open(params, seed))

    def restore(self, params: SyntheticParams, snapshot: Snapshot) -> SyntheticState:
        strike(self.folder, "restore")
        if (self.folder / f"commit-{os.getpid()}").exists():
            threading.Timer(COMMIT_S, strike, (self.folder, "commit")).start()
        return self._ours(super().restore(params, snapshot))

    def _ours(self, state: Any) -> MortalState:
        state.__class__ = MortalState
        state.folder = self.folder
        return state


def strike(folder: Path, moment: str) -> None:
    order = folder / f"{moment}-{os.getpid()}"
    if order.exists():
        victim = int(order.read_text())
        order.unlink()
        os.kill(victim, signal.SIGKILL)


def _is_called_by(name: str) -> bool:
    """Whether one of the six callers before the one that asks has this name."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(6):
        if frame is None or frame.f_code.co_name == name:
            break
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == name
