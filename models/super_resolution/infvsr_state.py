"""What an InfVSR session asks for and owns, and how the model runs (infvsr_flashvsr.md A1 §2, §3, §9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from riverrun.kernels.export import Rows
from riverrun.kernels.histories import Histories
from riverrun.kernels.shared import TextEntry
from riverrun.models.base import BadRequest
from riverrun.models.snapshot import Snapshotting
from riverrun.models.state import Rewindable, check_kind, refuse_snapshot
from riverrun.models.super_resolution.restorer import SIGMA, TIMESTEP, Scene
from riverrun.models.super_resolution.scenes import SceneSplitter

SNAPSHOT_VERSION = 2


@dataclass(frozen=True)
class InfVSRParams:
    """What a session may ask for.

    height, width: pixels of the frames that come in, default the model's own; frames of other sizes are taken too, as
    a new scene, as long as they make no larger a picture. find_scenes: look for scene cuts and for a reference frame
    that no longer fits, which costs 15 frames of delay; without it the first frame is the reference for ever.
    """

    height: int | None = None
    width: int | None = None
    find_scenes: bool = True


@dataclass(frozen=True)
class InfVSROptions:
    """How the model runs, the same for all its sessions; the defaults are the released configuration.

    height, width: default size of the frames that come in; max_pixels bounds what a session may ask for. scale:
    pixels out for one in, along each side. previous: chunks in the cache. timestep, sigma: of the one denoising step.
    scene_threshold, reference_threshold: difference that is a cut, or makes a reference stale. tile_above: pictures
    higher than so many pixels go through the VAE in tiles of `tile_size` latents every `tile_stride`. fps: of the
    media clock where the frames that come in don't say.
    """

    height: int = 120
    width: int = 208
    max_pixels: int = 272 * 480
    scale: int = 4
    previous: int = 1
    timestep: float = TIMESTEP
    sigma: float = SIGMA
    scene_threshold: float = 27.0
    reference_threshold: float = 27.0
    tile_above: int = 1024
    tile_size: int = 128
    tile_stride: int = 110
    fps: float = 16.0

    def __post_init__(self) -> None:
        for name in ("scale", "previous", "height", "width"):
            if getattr(self, name) < 1:
                raise BadRequest(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.tile_stride <= self.tile_size:
            raise BadRequest(f"tile_stride must lie in 1..{self.tile_size} (tile_size), got {self.tile_stride}")
        if not self.fps > 0:
            raise BadRequest(f"fps must be above 0, got {self.fps}")


@dataclass
class InfVSRState(Snapshotting, Rewindable):
    """One session.

    splitter: frames that wait, and the scene detector. scene: cache and counters of the scene under way, None before
    the first. size: height and width of its frames. histories: what the VAE remembers, by tile, and what a conditional
    decoder does ("decoder"). context: the reference frame's tokens [1, N, context_dim]; text: their keys and values.
    frames: emitted so far. revision: newest control in force. is_broken: a step failed half-way, only a restored
    snapshot can go on.
    """

    params: InfVSRParams
    splitter: SceneSplitter
    scene: Scene | None = None
    size: tuple[int, int] = (0, 0)
    histories: dict[str, Histories] = field(default_factory=dict)
    context: Tensor = field(default_factory=lambda: torch.empty(0))
    text: TextEntry = field(default_factory=lambda: TextEntry(torch.empty(0), torch.empty(0)))
    frames: int = 0
    revision: int = 0
    is_broken: bool = False

    @property
    def nbytes(self) -> int:
        cache = 0 if self.scene is None else self.scene.cache.nbytes
        histories = sum(memory.nbytes for memory in self.histories.values())
        return self.splitter.nbytes + cache + histories + self.context.nbytes + self.text.nbytes

    def parts(self, kind: str) -> tuple[dict[str, Any], dict[str, Tensor | Rows]]:
        """Exact: waiting frames and detector, cache slots in physical order, histories, context, counters.

        The only kind: three quarters of it is what the VAE remembers of both its sides, which reaches back some 150
        frames; to encode, restore and decode those again costs more than moving it.
        Raises Corrupt for a session that failed.
        """
        refuse_snapshot(self)
        check_kind(kind)
        waiting, frames = self.splitter.snapshot()
        meta: dict[str, Any] = {"version": SNAPSHOT_VERSION, "splitter": waiting, "scene": None}
        tensors: dict[str, Tensor | Rows] = {
            f"splitter/{name}": torch.from_numpy(array) for name, array in frames.items()
        }
        if self.scene is not None:
            meta["scene"], scene = self._scene(self.scene)
            tensors |= scene
        return meta | {"frames": self.frames, "revision": self.revision}, tensors

    def _scene(self, scene: Scene) -> tuple[Mapping[str, Any], dict[str, Tensor | Rows]]:
        cache_meta, cache = scene.cache.snapshot()
        meta = {"cache": cache_meta, "start": scene.start, "sizes": list(scene.sizes), "size": list(self.size)}
        tensors: dict[str, Tensor | Rows] = {"context": self.context}
        tensors |= {f"cache/{name}": rows for name, rows in cache.items()}
        tiles = {}
        for tile, memory in self.histories.items():
            tiles[tile], kept = memory.snapshot()
            tensors |= {f"histories/{tile}/{path}": tensor for path, tensor in kept.items()}
        return meta | {"histories": tiles}, tensors
