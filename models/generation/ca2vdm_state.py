"""What a session of Ca2-VDM or ViD-GPT asks for and owns (ca2vdm.md §4, §5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from riverrun.kernels.export import Rows
from riverrun.models.base import BadRequest, Control
from riverrun.models.generation.ca2vdm_sampler import ClipStream
from riverrun.models.snapshot import Snapshotting, pack_control
from riverrun.models.state import Rewindable, check_kind, refuse_snapshot

SNAPSHOT_VERSION = 2
KINDS = ("exact", "recache")


@dataclass(frozen=True)
class ClipParams:
    """What a session may ask for.

    prompt: what to show, for a model with captions. guidance: how strongly it holds; above 1 every pass runs on two
    rows, with and without the caption, and the caches double. chunks: the stream ends after so many; None: never.
    """

    prompt: str = ""
    guidance: float = 1.0
    chunks: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.guidance <= 100:
            raise BadRequest(f"guidance must be 0..100, got {self.guidance}")
        if self.chunks is not None and self.chunks < 1:
            raise BadRequest(f"chunks must be at least 1, got {self.chunks}")


@dataclass
class ClipState(Snapshotting, Rewindable):
    """One session; see `parts` for what is kept.

    given: its first frames [T, C, h, w], pushed and not yet written into the caches. pending: the prompt that takes
    force at the next chunk. tail: the last frame of progressive noise [C, h, w] (ViD-GPT). chunk: chunks made, the
    counter of the noise. frames: latent frames emitted. is_broken: a step failed half-way.
    """

    params: ClipParams
    seed: int
    stream: ClipStream
    given: Tensor | None = None
    embedding: Tensor | None = None
    pending: Control | None = None
    tail: Tensor | None = None
    chunk: int = 0
    frames: int = 0
    revision: int = 0
    is_broken: bool = False

    @property
    def nbytes(self) -> int:
        kept = sum(
            tensor.nbytes for tensor in (self.given, self.embedding, self.tail, self.stream.past) if tensor is not None
        )
        return self.stream.caches.nbytes + kept + sum(entry.nbytes for entry in self.stream.text)

    def parts(self, kind: str) -> tuple[dict[str, Any], dict[str, Tensor | Rows]]:
        """Exact: both caches in physical order, the past's latents, frames and prompts that wait, the caption, the
        noise's tail, counters. Recache: without the caches, which are computed from the latents.

        Raises Corrupt for a session that failed.
        """
        refuse_snapshot(self)
        check_kind(kind, KINDS)
        caches: dict[str, Any] = {}
        tensors: dict[str, Tensor | Rows] = {}
        for cache in self.stream.caches.all() if kind == "exact" else ():
            name = cache.spec.name
            caches[name], packed = cache.snapshot()
            tensors |= {f"{name}/{part}": tensor for part, tensor in packed.items()}
        for owner, name in ((self, "given"), (self, "embedding"), (self, "tail"), (self.stream, "past")):
            if (tensor := getattr(owner, name)) is not None:
                tensors[name] = tensor
        pending, embedding = pack_control(self.pending)
        tensors |= embedding
        counters = {name: getattr(self, name) for name in ("seed", "chunk", "frames", "revision")}
        meta = {"version": SNAPSHOT_VERSION, "caches": caches, "counters": counters}
        return meta | {"written": self.stream.caches.frames, "pending": pending}, tensors
