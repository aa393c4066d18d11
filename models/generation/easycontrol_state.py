"""What an EasyControl session asks for and owns, and how the model runs (easycontrol.md §7, §9)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from riverrun.kernels.export import Rows
from riverrun.models.base import TICKS_PER_SECOND, BadRequest, Control
from riverrun.models.generation.easycontrol_conditions import TOKEN, ConditionEntry
from riverrun.models.snapshot import Snapshotting, pack_control
from riverrun.models.state import Rewindable, Waiting, check_kind

SNAPSHOT_VERSION = 1


@dataclass(frozen=True)
class EasyControlParams:
    """What a session may ask for.

    prompt: what to show. height, width: pixels, multiples of 16; default the model's own size. guidance: how strongly
    the prompt binds, as the model was distilled to be told. conditions: the strength of each condition to use, by its
    port; default all the model has, at 1. same_noise: every image begins with the same noise, so that pictures of
    one stream differ by their conditions only.
    """

    prompt: str
    height: int | None = None
    width: int | None = None
    guidance: float = 3.5
    conditions: Mapping[str, float] | None = None
    same_noise: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:
            raise BadRequest(f"guidance must not be negative, got {self.guidance}")
        if self.conditions is None:
            return
        if not isinstance(self.conditions, Mapping):
            raise BadRequest(f"conditions must name ports and their strengths, got {self.conditions!r}")
        for port, strength in self.conditions.items():
            is_number = isinstance(strength, int | float) and not isinstance(strength, bool)
            if not is_number or not math.isfinite(strength):
                raise BadRequest(f"the strength of condition {port!r} must be a number, got {strength!r}")


@dataclass(frozen=True)
class EasyControlOptions:
    """How the model runs, the same for all its sessions; the defaults are those of the released demo.

    height, width: default size in pixels; max_pixels bounds what a session may ask for. cond_size: pixels along each
    side of a condition. steps: denoising steps an image. base_shift, max_shift: of the noise levels at 256 and at
    4096 tokens. text_len: the most tokens of a prompt. fps: of the media clock, where no input has one.
    """

    height: int = 1024
    width: int = 1024
    max_pixels: int = 1024 * 1024
    cond_size: int = 512
    steps: int = 25
    base_shift: float = 0.5
    max_shift: float = 1.15
    text_len: int = 512
    fps: int = 16

    def __post_init__(self) -> None:
        if self.cond_size < TOKEN or self.cond_size % TOKEN:
            raise BadRequest(f"cond_size must be a multiple of {TOKEN}, got {self.cond_size}")
        for name in ("steps", "text_len"):
            if getattr(self, name) < 1:
                raise BadRequest(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.fps <= TICKS_PER_SECOND:
            raise BadRequest(f"fps must be 1..{TICKS_PER_SECOND}, got {self.fps}")


class Held(NamedTuple):
    """A shared entry that a session keeps alive, and its content key."""

    key: str
    entry: ConditionEntry


@dataclass
class EasyControlState(Snapshotting, Rewindable):
    """One session; see `parts` for what is kept.

    subjects: pictures that hold for the whole stream, uint8 [h, w, 3], by port. waiting: frames of the spatial ports,
    one of each an image. embedding: the prompt in force, pooled row first. pending: the prompt of the next image.
    entries: keys and values of the subjects under that prompt, once an image was made. frames: images emitted, the
    counter of the noise.
    """

    params: EasyControlParams
    seed: int
    waiting: dict[str, list[Waiting]]
    subjects: dict[str, np.ndarray] = field(default_factory=dict)
    embedding: Tensor | None = None
    pending: Control | None = None
    entries: dict[str, Held] = field(default_factory=dict)
    frames: int = 0
    revision: int = 0

    @property
    def nbytes(self) -> int:
        pictures = [*self.subjects.values(), *(w.pixels for queue in self.waiting.values() for w in queue)]
        text = 0 if self.embedding is None else self.embedding.nbytes
        return text + sum(p.nbytes for p in pictures) + sum(held.entry.nbytes for held in self.entries.values())

    def parts(self, kind: str) -> tuple[dict[str, Any], dict[str, Tensor | Rows]]:
        """Exact: prompt, pictures and counters, from which the conditions' keys are built again bit for bit.

        Of the entries only the content keys go with it: one pass over a picture costs less than moving what it gives
        (684 MiB at the released size).
        """
        check_kind(kind)
        tensors: dict[str, Tensor | Rows] = {
            f"subject/{port}": torch.from_numpy(image) for port, image in self.subjects.items()
        }
        for port, queue in self.waiting.items():
            tensors |= {f"waiting/{port}/{i}": torch.from_numpy(w.pixels) for i, w in enumerate(queue)}
        if self.embedding is not None:
            tensors["embedding"] = self.embedding
        pending, embedding = pack_control(self.pending)
        tensors |= embedding
        meta: dict[str, Any] = {"version": SNAPSHOT_VERSION, "pending": pending}
        meta |= {name: getattr(self, name) for name in ("seed", "frames", "revision")}
        meta["keys"] = {port: held.key for port, held in self.entries.items()}
        meta["waiting"] = {port: [list(w[1:]) for w in queue] for port, queue in self.waiting.items()}
        return meta, tensors
