"""Any model, made so that it can be told to kill somebody the moment a State is prepared for, copied out or restored.

A file `<folder>/<moment>-<pid of the actor>` holds the pid to be killed; it works once.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from riverrun.models.base import Description, Snapshot, StreamModel

COMMIT_S = 0.004
"""Between a restore and the writing of the record that follows it."""


def make(of: str, folder: str, **args: Any) -> StreamModel:
    """A model of class `of` ("package.module:Class"). folder: where it looks for whom to kill. args: of the class."""
    module, _, name = of.partition(":")
    cls = getattr(importlib.import_module(module), name)
    own = {"folder": Path(folder)} | ({"refill": _refill(cls)} if hasattr(cls, "refill") else {})
    return type(f"Mortal{name}", (Mortal, cls), own)(**args)


def _refill(cls: Any) -> Any:
    """Of a model that restores what moves by it."""

    def refill(self: Any, blank: Any, snapshot: Snapshot) -> Any:
        self.strike_at_restore()
        return cls.refill(self, blank, snapshot)

    return refill


class Mortal:
    """Goes before the class of a model."""

    folder: Path

    def describe(self, params: Any) -> Description:
        if _is_called_by("prepare"):
            strike(self.folder, "prepare")
        return super().describe(params)  # type: ignore[misc]

    def open(self, params: Any, seed: int) -> Any:
        return self._ours(super().open(params, seed))  # type: ignore[misc]

    def restore(self, params: Any, snapshot: Snapshot) -> Any:
        self.strike_at_restore()
        return self._ours(super().restore(params, snapshot))  # type: ignore[misc]

    def strike_at_restore(self) -> None:
        strike(self.folder, "restore")
        if (self.folder / f"commit-{os.getpid()}").exists():
            threading.Timer(COMMIT_S, strike, (self.folder, "commit")).start()

    def _ours(self, state: Any) -> Any:
        if not hasattr(state, "is_mortal"):
            state.__class__ = _mortal(type(state), self.folder)
        return state


def _mortal(cls: Any, folder: Path) -> type:
    """The class of States, which are copied out by `lend` where they have it, else by `snapshot`."""

    def snapshot(self: Any, kind: str = "exact") -> Snapshot:
        if _is_called_by("pack"):  # a checkpoint is taken with it too
            strike(folder, "export")
        return cls.snapshot(self, kind)

    def lend(self: Any) -> Snapshot:
        if _is_called_by("pack"):
            strike(folder, "export")
        return cls.lend(self)

    own = {"is_mortal": True, "snapshot": snapshot} | ({"lend": lend} if hasattr(cls, "lend") else {})
    return type(f"Mortal{cls.__name__}", (cls,), own)


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
