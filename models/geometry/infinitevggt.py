"""InfiniteVGGT as a stage: camera, depth and points of an endless video, a frame at a time (infinitevggt.md).

Paper: arXiv 2601.02281. StreamVGGT's weights and attention to the past, with the past bounded by `DiverseKeys`.
Everything is in the axes of the stream's first camera (OpenCV), up to one unknown scale; maps are of the size the
frames have in the network, and so are the fields of view. The picture as the network saw it goes out with them. Frames
may change their size where they keep that in the network; else a new stream must begin, since the rows of a frame in
the memory are a fixed number.

State, with bytes at released size (518 x 392, 1041 tokens a frame, default parameters):
- tokens: keys (after norm and RoPE) and values of the 24 global blocks, at most 1,200,000 rows a head in all and one
  frame a layer in passing: 10.0 GB in float32, 5.0 GB in bfloat16 (official autocast has keys in float32 there).
  Policy `DiverseKeys`, after the official code (not the paper, whose temperature and budget differ), or another.
- scores: float32 [24], how alike each layer's keys were when it was last pruned; they share out the rows.
- poses: keys and values of the camera head's 4 trunk layers, 4 rows a frame: 268 MB for 1024 frames. Policy
  `SinkWindow`; the bound is ours, the official cache grows for ever.
- frames that wait, and counters.

Source: repository AutoLab-SAI-SJTU/InfiniteVGGT, 7f9a5a2. Weights: lch01/StreamVGGT, CC BY-NC-SA 4.0 by its
maintainers' word (not for commercial use); not shipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from riverrun.models.base import (
    BadRequest,
    Chunk,
    Description,
    Kind,
    Port,
    Snapshot,
    StreamModel,
    parse_params,
)
from riverrun.models.geometry import poses
from riverrun.models.geometry.fitting import Fit, network_size
from riverrun.models.geometry.infinitevggt_state import (
    SNAPSHOT_VERSION,
    InfiniteVGGTParams,
    InfiniteVGGTState,
)
from riverrun.models.geometry.memory import GeometryStream
from riverrun.models.geometry.preprocess import prepare
from riverrun.models.geometry.tracker import TrackConfig
from riverrun.models.geometry.vggt import (
    RELEASED_BUDGET,
    VGGT,
    CameraMemory,
    Geometry,
    TokenMemory,
    VGGTConfig,
    least_budget,
    rolling_stream,
)
from riverrun.models.room import room
from riverrun.models.snapshot import below, to_tensors
from riverrun.models.state import Waiting, check_frames, frames_of, reading, rewriting
from riverrun.models.weights import as_tuples, default_device, float_dtype, load_strict, read

TRACKER = "track_head."


@dataclass(frozen=True)
class InfiniteVGGTOptions:
    """How the model runs, the same for all its sessions. fps: of the media clock, where a client gives none.
    memory_frames: what a session remembers that says nothing about it; None: the released budget."""

    fps: float = 10.0
    memory_frames: int | None = None


class InfiniteVGGT(StreamModel):
    """Weights of aggregator and heads; every session's state is an argument."""

    Params = InfiniteVGGTParams

    def __init__(
        self,
        weights: str,
        *,
        weights_config: str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        **options: Any,
    ) -> None:
        """weights: a path or a hub name, any form `models/weights.py` reads. weights_config: JSON with the sizes
        (`VGGTConfig`), default the released ones. dtype: of aggregator and token cache; the heads run in float32.
        device: default CUDA where there is one. options: InfiniteVGGTOptions.

        The checkpoint's tracker is checked as strictly as the rest and then let go: a stream has no use for it.
        """
        self.options = parse_params(InfiniteVGGTOptions, options)
        self.device = default_device(device)
        self.dtype = float_dtype(dtype)
        tensors = read(weights)
        config = vggt_sizes(weights_config)
        if not any(name.startswith(TRACKER) for name in tensors):
            config = replace(config, track=None)  # weights whose owner has left it out
        with torch.device("meta"):
            self.model = VGGT(config).eval()
        load_strict(self.model, tensors)
        if config.track is not None:
            del self.model.track_head
        self.model.requires_grad_(False).float().to(self.device)
        self.model.aggregator.to(self.dtype)
        self.config = config

    # -- sessions --------------------------------------------------------------------------------------------

    def describe(self, params: InfiniteVGGTParams) -> Description:
        known = None if params.height is None else self._network_size(params, (params.height, cast(int, params.width)))
        height, width = known or (self.config.image, self.config.image)
        stream = self._stream(params, (height, width), "meta")
        return Description(
            inputs=(Port("frames", Kind.FRAMES),),
            outputs=(
                Port("image", Kind.FRAMES),
                Port("depth", Kind.DEPTH),
                Port("points", Kind.POINTS),
                Port("camera", Kind.CAMERA),
                Port("confidence", Kind.CONFIDENCE),
            ),
            chunk_frames=1,
            latency_frames=1,
            fps=self.options.fps,
            frame_shape=known,
            retained_bytes=stream.nbytes,
        )

    def open(self, params: InfiniteVGGTParams, seed: int) -> InfiniteVGGTState:
        state = InfiniteVGGTState(params, seed)
        if params.height is not None and params.width is not None:
            self._begin(state, (params.height, params.width))
        return state

    def push(self, state: InfiniteVGGTState, chunk: Chunk) -> None:
        if chunk.port != "frames":
            raise BadRequest(f"InfiniteVGGT takes a port 'frames', got {chunk.port!r}")
        _, height, width, _ = check_frames(chunk).shape
        if state.size is None:
            self._begin(state, (height, width))
        elif (size := self._network_size(state.params, (height, width))) != state.size:
            raise BadRequest(
                f"frames of {height} x {width} are {size[0]} x {size[1]} in the network, this stream's are "
                f"{state.size[0]} x {state.size[1]} there: begin a new stream for them"
            )
        self._check_room(state, chunk.frames)
        state.waiting.extend(frames_of(chunk))

    def ready(self, state: InfiniteVGGTState) -> bool:
        return bool(state.waiting)

    def batch_key(self, state: InfiniteVGGTState) -> Any:
        if state.size is None:
            return None
        return (*state.size, state.params.points, state.params.memory == "diverse_keys")

    @torch.no_grad()
    def step(self, states: Sequence[InfiniteVGGTState]) -> list[list[Chunk]]:
        """One frame each, in one batch; attention session by session, each over its own memory."""
        with rewriting(states):
            images = torch.stack([self._prepared(state) for state in states])
            streams = [state.stream for state in states if state.stream is not None]
            from_head = states[0].params.points == "head"
            result = self.model.frame(images.to(self.device), streams, points=from_head)
            outputs = {"image": _pixels(images)} | self._outputs(result, *images.shape[2:])
            return [self._emit(state, outputs, row) for row, state in enumerate(states)]

    def restore(self, params: InfiniteVGGTParams, snapshot: Snapshot) -> InfiniteVGGTState:
        return self.refill(self.open(params, seed=0), snapshot)

    def refill(self, state: InfiniteVGGTState, snapshot: Snapshot) -> InfiniteVGGTState:
        with reading(snapshot, SNAPSHOT_VERSION) as meta:
            self._fill(state, meta, to_tensors(snapshot.tensors, meta["dtypes"], "cpu", ("tokens/", "poses/")))
        return state

    def _fill(self, state: InfiniteVGGTState, meta: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        if meta["size"] is not None:
            size = (meta["size"][0], meta["size"][1])
            if state.size not in (None, size):
                raise ValueError(f"its frames are {size} in the network, the parameters say {state.size}")
            state.size, state.stream = size, self._stream(state.params, size, self.device)
            state.stream.tokens.restore(meta["tokens"], below(tensors, "tokens/"))
            state.stream.poses.restore(meta["poses"], below(tensors, "poses/"))
            state.stream.scores = tensors["scores"]
        for i, times in enumerate(meta["waiting"]):
            state.waiting.append(Waiting(tensors[f"waiting/{i}"].numpy(), *times))
        state.seed, state.frames = meta["seed"], meta["frames"]

    # -- parts of a step -------------------------------------------------------------------------------------

    def _prepared(self, state: InfiniteVGGTState) -> Tensor:
        return prepare(state.waiting[0].pixels, self.config.image, self.config.patch, cast(Fit, state.params.fit))

    def _outputs(self, result: Geometry, height: int, width: int) -> dict[str, np.ndarray]:
        """Arrays of N frames by port."""
        camera, points, confidence = result.poses[-1], result.points, result.point_confidence
        if points is None or confidence is None:
            points, confidence = poses.world_points(result.depth, *poses.matrices(camera, height, width)), None
        found = {
            "depth": result.depth,
            "points": points,
            "camera": camera,
            "confidence": result.depth_confidence if confidence is None else confidence,
        }
        return {port: tensor.float().contiguous().cpu().numpy() for port, tensor in found.items()}

    def _emit(self, state: InfiniteVGGTState, outputs: Mapping[str, np.ndarray], row: int) -> list[Chunk]:
        frame, number = state.waiting.popleft(), state.frames
        state.frames += 1
        return [
            Chunk(port, values[row : row + 1], frame.pts, frame.ticks, 1, number, revision=frame.revision)
            for port, values in outputs.items()
        ]

    # -- sizes -----------------------------------------------------------------------------------------------

    def _network_size(self, params: InfiniteVGGTParams, size: tuple[int, int]) -> tuple[int, int]:
        return network_size(*size, self.config.image, self.config.patch, cast(Fit, params.fit))

    def _begin(self, state: InfiniteVGGTState, size: tuple[int, int]) -> None:
        """Makes the memory for frames of that size. Raises BadRequest if the budget is too small for them."""
        inside = self._network_size(state.params, size)
        tokens = self.config.tokens(*inside)
        least = least_budget(self.config, tokens, cast(TokenMemory, state.params.memory))
        if (budget := self._budget(state.params, inside)) < least:
            raise BadRequest(
                f"total_budget must be at least {least}, so that each of {self.config.depth} layers can hold the first "
                f"frame's {tokens} tokens, got {budget}"
            )
        state.size, state.stream = inside, self._stream(state.params, inside, self.device)

    def _check_room(self, state: InfiniteVGGTState, frames: int) -> None:
        """Raises BadRequest where a memory that forgets nothing could not hold so many more frames."""
        assert state.size is not None
        params, stop = state.params, state.frames + len(state.waiting) + frames
        whole = self._budget(params, state.size) // self.config.depth // self.config.tokens(*state.size)
        for name, most in (("memory", whole), ("camera_memory", params.camera_frames)):
            if getattr(params, name) == "full" and stop > most:
                raise BadRequest(f"{name} 'full' holds {most} frames within its bound, this stream has {stop}")

    def _budget(self, params: InfiniteVGGTParams, size: tuple[int, int]) -> int:
        """Rows a head over all layers, for frames of that size in the network."""
        if params.total_budget is not None:
            return params.total_budget
        if params.memory_mb is not None:
            row = 2 * self.config.dim * self.dtype.itemsize  # a key and a value of all heads
            return int(params.memory_mb * 1e6) // row
        frames = params.memory_frames or self.options.memory_frames
        return RELEASED_BUDGET if frames is None else frames * self.config.depth * self.config.tokens(*size)

    def _stream(self, params: InfiniteVGGTParams, size: tuple[int, int], device: torch.device | str) -> GeometryStream:
        bounds = self._budget(params, size), params.camera_frames
        memory, camera = cast(TokenMemory, params.memory), cast(CameraMemory, params.camera_memory)
        with room(self.device):
            return rolling_stream(self.config, size, *bounds, self.dtype, device, memory=memory, camera_memory=camera)


def _pixels(images: Tensor) -> np.ndarray:
    """images [N, 3, H, W] in 0..1 -> uint8 [N, H, W, 3]."""
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def vggt_sizes(path: str | None) -> VGGTConfig:
    """Sizes from a JSON file, the tracker's under "track"; or the released ones."""
    if path is None:
        return VGGTConfig()
    sizes = as_tuples(json.loads(Path(path).read_text()))
    if sizes.get("track") is not None:
        sizes["track"] = TrackConfig(**sizes["track"])
    return VGGTConfig(**sizes)
