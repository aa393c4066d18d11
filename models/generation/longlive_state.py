"""What a LongLive session asks for and owns, and how the model runs (longlive.md §2, §6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor

from riverrun.kernels.export import Rows
from riverrun.kernels.histories import Histories
from riverrun.models.base import TICKS_PER_SECOND, BadRequest, Control
from riverrun.models.generation.rollout import LatentStream
from riverrun.models.snapshot import Snapshotting, pack_control
from riverrun.models.state import Rewindable, check_kind, refuse_snapshot
from riverrun.models.wan.stream import RopeForm

SNAPSHOT_VERSION = 2
KINDS = ("exact", "recache")


@dataclass(frozen=True)
class LongLiveParams:
    """What a session may ask for.

    prompt: what to show. height, width: pixels, multiples of 16; default the model's own size. sink: keep the first
    block for ever (without it long streams drift). recache: recompute the window at a prompt switch (without it the
    old prompt lingers). keep_sink: a recache leaves the first block as it was.
    """

    prompt: str
    height: int | None = None
    width: int | None = None
    sink: bool = True
    recache: bool = True
    keep_sink: bool = True


@dataclass
class LongLiveState(Snapshotting, Rewindable):
    """One session: cache, prompt, clean latents, decoder histories and counters; see `parts` for what is kept.

    pending: the prompt that takes force at the next block. chunk: blocks made, the counter of the noise.
    frames: pixel frames emitted. is_broken: a step failed half-way, only a restored snapshot can go on.
    """

    params: LongLiveParams
    seed: int
    stream: LatentStream
    histories: Histories
    embedding: Tensor | None = None
    pending: Control | None = None
    chunk: int = 0
    frames: int = 0
    revision: int = 0
    is_broken: bool = False

    @property
    def nbytes(self) -> int:
        text = 0 if self.embedding is None else self.embedding.nbytes + self.stream.text.nbytes
        return self.stream.cache.nbytes + self.histories.nbytes + self.stream.recent.nbytes + text

    def parts(self, kind: str) -> tuple[dict[str, Any], dict[str, Tensor | Rows]]:
        """Exact: cache slots in physical order, clean latents, prompt embeddings, histories, counters.

        Recache: of the cache the sink alone, and no histories; `LongLive.restore` computes both from the latents. A
        prompt that waits for the next block is in it, so that a control once taken is not lost with its session.
        Raises Corrupt for a session that failed.
        """
        refuse_snapshot(self)
        check_kind(kind, KINDS)
        is_exact, stream = kind == "exact", self.stream
        cache_meta, cache = stream.cache.snapshot() if is_exact else stream.cache.snapshot_head(stream.sink)
        history_meta, histories = (self.histories if is_exact else Histories()).snapshot()
        tensors: dict[str, Tensor | Rows] = {"recent": stream.recent}
        if self.embedding is not None:
            tensors["embedding"] = self.embedding
        pending, embedding = pack_control(self.pending)
        tensors |= embedding
        tensors |= {f"cache/{name}": rows for name, rows in cache.items()}
        tensors |= {f"histories/{name}": tensor for name, tensor in histories.items()}
        counters = {name: getattr(self, name) for name in ("seed", "chunk", "frames", "revision")}
        meta: dict[str, Any] = {"version": SNAPSHOT_VERSION, "start": stream.start, "switched": stream.switched}
        meta |= {"cache": cache_meta, "histories": history_meta, "counters": counters, "pending": pending}
        return meta, tensors


@dataclass(frozen=True)
class LongLiveOptions:
    """How the model runs, the same for all its sessions; the defaults are the released configuration.

    height, width: default size in pixels; max_pixels bounds what a session may ask for. window, sink: latent frames,
    the window holding sink and current block too. steps: denoising steps in 1000ths, warped by `shift`.
    rope: see `RopeForm`. fps: of the media clock.
    """

    height: int = 480
    width: int = 832
    max_pixels: int = 832 * 480
    block: int = 3
    window: int = 12
    sink: int = 3
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float = 5.0
    rope: RopeForm = "infinite"
    fps: int = 16

    def __post_init__(self) -> None:
        if self.block < 1:
            raise BadRequest(f"block must be at least one latent frame, got {self.block}")
        if self.sink < 0:
            raise BadRequest(f"sink must not be negative, got {self.sink}")
        if self.sink > self.block:
            raise BadRequest(f"sink must be at most a block of {self.block} latent frames, got {self.sink}")
        if self.window < self.sink + self.block:
            raise BadRequest(f"window must hold sink and block, {self.sink + self.block} frames, got {self.window}")
        if self.rope not in get_args(RopeForm):
            raise BadRequest(f"rope must be one of {', '.join(get_args(RopeForm))}, got {self.rope!r}")
        if not 0 < self.fps <= TICKS_PER_SECOND:
            raise BadRequest(f"fps must be 1..{TICKS_PER_SECOND}, got {self.fps}")
        if not self.steps or any(type(step) is not int for step in self.steps):
            raise BadRequest(f"steps must be whole numbers, at least one, got {list(self.steps)}")
