"""What a session of a model costs in bytes, measured: one session with default parameters is stepped before any other.

Retained is what its State says it holds (on CUDA: what is allocated on the device, if that is more). A step's own need
is read where memory is given out: on CUDA from the allocator's peak, on a CPU from the kernel's high-water mark of
resident memory, which counts the scratch space of libraries too; of several steps the least counts, since the first
ones also load code. Where neither can be read (no /proc), the model's own description stands.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.cluster.admission import Need
from riverrun.models.base import Chunk, Description, StreamModel

log = logging.getLogger(__name__)
STEPS, SECONDS = 16, 2.0
"""The warm-up ends after so many steps, or once so much time is over and two were made."""

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Footprint:
    """What the warm-up found. about: the model's description of the session that was stepped. retained: bytes held
    after its last step. extra: what a step needs on top; None: can't be measured here. steps: made."""

    about: Description
    retained: int
    extra: int | None
    steps: int

    def need(self, description: Description) -> Need:
        """Of a session as described: what was measured, in the proportion of what the model says of the two.

        What is kept goes by retained bytes, and is never below the model's own figure, which knows of caches that the
        warm-up has not filled; what a step needs goes by pixels a step, or by retained bytes where there are none.
        """
        kept = _ratio(description.retained_bytes, self.about.retained_bytes)
        retained = max(description.retained_bytes, round(self.retained * kept))
        if self.extra is None:
            return Need(retained, max(retained, description.peak_bytes))
        work = _ratio(_pixels(description), _pixels(self.about)) if _pixels(self.about) else kept
        return Need(retained, max(retained + round(self.extra * work), description.peak_bytes))


def described(description: Description) -> Need:
    """What the model itself says, for an actor that has measured nothing."""
    return Need(description.retained_bytes, max(description.retained_bytes, description.peak_bytes))


def measure(model: StreamModel, params: Any, seconds: float = SECONDS) -> Footprint | None:
    """Steps one session with these parameters and throws it away; also what makes a first chunk as quick as later ones.

    None for a model whose session could not be stepped: it wants input that only it knows, or it failed (logged).
    """
    try:
        return _measured(model, params, seconds)
    except Exception as error:  # noqa: BLE001 - a model may do anything; its sessions will say it again
        log.warning("the warm-up failed, sessions count as described: %s: %s", type(error).__name__, error)
        return None


def _measured(model: StreamModel, params: Any, seconds: float) -> Footprint | None:
    meter = _meter(model)
    about, before, until = model.describe(params), meter.held(), time.monotonic() + seconds
    state, extras = model.open(params, seed=0), list[int]()
    while len(extras) < STEPS and (len(extras) < 2 or time.monotonic() < until):
        _give(model, state, params, len(extras))
        if not model.ready(state):
            break
        mark = state.mark() if hasattr(state, "rewind") else None  # as a step of the service has one
        with meter.stepping(extras):
            model.step([state])
        del mark
    if not extras:
        return None
    extra = min(extras[1:] or extras)
    retained = max(int(state.nbytes), meter.held() - before)
    return Footprint(about, retained, None if extra < 0 else extra, len(extras))


def _give(model: StreamModel, state: Any, params: Any, turn: int) -> None:
    for given in model.example(params, turn):
        if isinstance(given, Chunk):
            model.push(state, given)
        else:
            model.control(state, given)


class _Nothing:
    """Where memory can't be seen: every step needs -1 byte."""

    def held(self) -> int:
        return 0

    @contextlib.contextmanager
    def stepping(self, extras: list[int]) -> Iterator[None]:
        yield
        extras.append(-1)


class _Resident(_Nothing):
    """Linux: resident memory of this process, and its high-water mark, which is set back before each step."""

    @contextlib.contextmanager
    def stepping(self, extras: list[int]) -> Iterator[None]:
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # memory that is free but not given back would hide what a step takes
        _CLEAR.write_text("5")
        before = _status("VmRSS")
        yield
        extras.append(max(0, _status("VmHWM") - before))


class _Cuda(_Nothing):
    """What PyTorch has allocated on one device."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._cuda, self._device = torch.cuda, device

    def held(self) -> int:
        return int(self._cuda.memory_allocated(self._device))

    @contextlib.contextmanager
    def stepping(self, extras: list[int]) -> Iterator[None]:
        self._cuda.synchronize(self._device)
        self._cuda.reset_peak_memory_stats(self._device)
        before = self.held()
        yield
        self._cuda.synchronize(self._device)
        extras.append(int(self._cuda.max_memory_allocated(self._device)) - before)


def _meter(model: StreamModel) -> _Nothing:
    device, torch = getattr(model, "device", None), sys.modules.get("torch")
    if torch is not None and getattr(device, "type", "cpu") == "cuda":
        return _Cuda(torch, device)
    try:
        _CLEAR.write_text("5")
        _status("VmHWM")
    except (OSError, ValueError):
        return _Nothing()
    return _Resident()


def _status(name: str) -> int:
    """Bytes of this process by the kernel's name for them."""
    lines = (line.partition(":") for line in _STATUS.read_text().splitlines())
    for key, _, value in lines:
        if key == name:
            return int(value.split()[0]) * 1024
    raise ValueError(f"{_STATUS} has no {name}")


def _pixels(description: Description) -> int:
    return description.chunk_frames * math.prod(description.frame_shape or (0,))


def _ratio(wanted: int, known: int) -> float:
    return wanted / known if known else 1.0
