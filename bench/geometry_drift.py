"""What a long stream does to camera, depth and cloud, under each policy at one budget; first, whether memory is read.

At 100, 1,000 and 10,000 frames, the errors of the frames just before; the unbounded cache goes as far as it can.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riverrun.bench.geometry_paths import Piece, pieces, whole
from riverrun.bench.geometry_quality import GAP, depth_scale, mean_map, moved, unprojected
from riverrun.bench.geometry_watch import Watched, stream_of, watch
from riverrun.models.base import BadRequest
from riverrun.models.geometry.clouds import compare
from riverrun.models.geometry.infinitevggt import InfiniteVGGT
from riverrun.models.geometry.metrics import depth_errors, relative_errors, trajectory_errors
from riverrun.models.geometry.vggt import TokenMemory

MARKS, QUICK_MARKS = (100, 1000, 10_000), (50, 100)
DRIFT_PATHS = ("revisits", "walks on")
POLICIES: tuple[TokenMemory, ...] = ("diverse_keys", "sink_window", "full")
BUDGET, MOST_FULL = 24, 1000  # frames
LATE = 100  # frames before a mark whose depth counts
VOXEL = 0.1
CLOUD_EVERY = 10  # Long3D's protocol takes every 10th frame
Row = dict[str, Any]


@dataclass
class _Kept:
    """What a run keeps of its frames: every pose, and maps of every 10th at a quarter of the pixels. most: rows that
    its memory ever held."""

    marks: tuple[int, ...]
    most: int = 0
    poses: list[Tensor] = field(default_factory=list)
    true_poses: list[Tensor] = field(default_factory=list)
    depth: list[Tensor] = field(default_factory=list)
    true_depth: list[Tensor] = field(default_factory=list)
    points: list[Tensor] = field(default_factory=list)
    true_points: list[Tensor] = field(default_factory=list)
    chance: list[Tensor] = field(default_factory=list)  # points of a camera that stands before the mean depth map

    @property
    def scale(self) -> float:
        """What a unit of the reconstruction is, told from the first frames' depth."""
        early = slice(0, LATE // CLOUD_EVERY)
        return depth_scale(torch.stack(self.depth[early]), torch.stack(self.true_depth[early]))


def reading(model: InfiniteVGGT, scenes: int, frames: int = 60) -> list[dict[str, Any]]:
    """Does the model read its memory? The same frames under memories of 24 and 3 frames, of the first frame alone of
    another scene, each error as the mean over scenes; if nothing changes, no policy can be told from another."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    memories = (("24 frames", 24, False), ("3 frames", 3, False), ("another scene's", 24, True))
    for seed in range(scenes):
        truth, other = (whole("revisits", s, frames, model.config.image) for s in (seed, seed + 1000))
        for name, budget, is_foreign in memories:
            stream = stream_of(model, "sink_window", budget)
            sequence = _foreign(other, truth) if is_foreign else truth
            said = watch(model, [sequence], stream)
            late = slice(frames // 2, frames)
            true = torch.where(truth.depth.isfinite(), truth.depth, 0.0)[late]
            scale = depth_scale(said.depth[late], true)
            motion = relative_errors(said.poses[late], truth.poses[late], GAP, scale)
            errors = depth_errors(said.depth[late], true).abs_rel, motion.rotation, motion.translation
            found.setdefault(name, []).append(errors)
    names = ("abs_rel", "rotation", "translation")
    means = {name: torch.tensor(errors).mean(0).tolist() for name, errors in found.items()}
    return [{"memory": name, **dict(zip(names, mean, strict=True))} for name, mean in means.items()]


def _foreign(other: Piece, truth: Piece) -> Piece:
    """The second half of `truth` after the first half of another scene."""
    half = len(truth.frames) // 2
    return Piece(torch.cat([other.frames[:half], truth.frames[half:]]), truth.depth, truth.poses)


def drift(model: InfiniteVGGT, marks: Sequence[int], file: Path | None = None, seed: int = 0) -> dict[str, list[Row]]:
    """ "drift": a row for each path, policy and mark; "differences": what two policies differ by.

    file: JSON lines of the rows of each path that is done; a later call with the same weights takes them from there.
    """
    found: dict[str, list[Row]] = {"drift": [], "differences": []}
    weights = _digest(model)
    done = _done(file, weights)
    for path in DRIFT_PATHS:
        made = done.get((path, marks[-1]))
        if made is None:
            made = _along(model, path, marks, seed)
            if file:
                with file.open("a") as lines:
                    lines.write(json.dumps([weights, path, marks[-1], made]) + "\n")
        for part in found:
            found[part] += made[part]
    return found


def _done(file: Path | None, digest: str) -> dict[tuple[str, int], dict[str, list[Row]]]:
    lines = file.read_text().splitlines() if file and file.exists() else []
    return {(path, last): made for weights, path, last, made in map(json.loads, lines) if weights == digest}


def _digest(model: InfiniteVGGT) -> str:
    """Of the weights: rows of others are not theirs."""
    found = hashlib.sha256()
    for tensor in model.model.state_dict().values():
        found.update(tensor.cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _along(model: InfiniteVGGT, path: str, marks: Sequence[int], seed: int) -> dict[str, list[Row]]:
    """All policies over the same frames, each filmed once: filming costs as much as the network."""
    runs = {policy: _Kept(reach(policy, marks)) for policy in POLICIES}
    streams = {p: stream_of(model, p, runs[p].marks[-1] if p == "full" else BUDGET) for p in POLICIES}
    rows: dict[str, list[Row]] = {policy: [] for policy in POLICIES}
    for piece in pieces(path, seed, marks[-1], model.config.image):
        for policy, kept in runs.items():
            if len(kept.poses) >= kept.marks[-1]:
                continue
            said = watch(model, [piece], streams[policy], every=CLOUD_EVERY)
            for row in _passed(kept, piece, said):
                rows[policy].append({"path": path, "policy": policy, **row})
                print(rows[policy][-1], file=sys.stderr, flush=True)  # hours may lie between two of them
    apart = [{"path": path, **_difference(runs, a, b)} for a, b in itertools.combinations(POLICIES, 2)]
    return {"drift": [row for policy in POLICIES for row in rows[policy]], "differences": apart}


def reach(policy: TokenMemory, marks: Sequence[int]) -> tuple[int, ...]:
    """The marks that a policy comes to: a memory that forgets nothing grows too large for the later ones."""
    return tuple(mark for mark in marks if policy != "full" or mark <= MOST_FULL)


def _passed(kept: _Kept, piece: Piece, said: Watched) -> Iterator[Row]:
    """Keeps a piece; a row for each mark in it."""
    kept.most = max(kept.most, said.most)
    kept.poses += list(said.poses)
    kept.true_poses += list(piece.poses)
    home = torch.linalg.inv(kept.true_poses[0])
    true = torch.where(piece.depth.isfinite(), piece.depth, 0.0)[said.kept]
    true_points = moved(unprojected(true), home @ piece.poses[said.kept])
    chance = unprojected(mean_map(true.shape[-1])[None])[0, ::4, ::4]
    for i in range(len(said.kept)):
        kept.depth.append(said.depth[i, ::2, ::2])
        kept.true_depth.append(true[i, ::2, ::2])
        is_valid = true[i, ::4, ::4] > 0
        kept.points.append(said.points[i, ::4, ::4][is_valid])
        kept.true_points.append(true_points[i, ::4, ::4][is_valid])
        kept.chance.append(chance[is_valid])
    done = len(kept.poses)
    for mark in kept.marks:
        if done - len(piece.frames) < mark <= done:
            yield {"frames": mark, "most_rows": kept.most, **_errors(kept, mark)}


def _difference(runs: Mapping[TokenMemory, _Kept], a: TokenMemory, b: TokenMemory) -> Row:
    """Errors of `a` less those of `b` over windows of LATE frames that both have seen: mean, and two standard
    errors of it. A mean within them is noise."""
    frames = min(len(runs[a].poses), len(runs[b].poses))
    off = torch.tensor([[x - y for x, y in zip(_motion(runs[a], at), _motion(runs[b], at), strict=True)]
                        for at in range(0, frames - LATE + 1, LATE)])  # fmt: skip
    mean, noise = off.mean(0), 2 * off.std(0) / len(off) ** 0.5
    return {
        "policies": f"{a} - {b}", "windows": len(off), "rotation": float(mean[0]), "rotation_noise": float(noise[0]),
        "translation": float(mean[1]), "translation_noise": float(noise[1]),
    }  # fmt: skip


def _motion(kept: _Kept, at: int) -> tuple[float, float]:
    window = slice(at, at + LATE)
    found = relative_errors(torch.stack(kept.poses[window]), torch.stack(kept.true_poses[window]), GAP, kept.scale)
    return found.rotation, found.translation


def _errors(kept: _Kept, mark: int) -> Row:
    poses, truth = torch.stack(kept.poses[:mark]), torch.stack(kept.true_poses[:mark])
    maps = mark // CLOUD_EVERY
    late = slice(max(0, maps - LATE // CLOUD_EVERY), maps)
    depth, true = torch.stack(kept.depth[late]), torch.stack(kept.true_depth[late])
    scale = kept.scale
    motion = relative_errors(poses[-LATE:], truth[-LATE:], GAP, scale)
    true_points = torch.cat(kept.true_points[:maps])
    cloud = compare(scale * torch.cat(kept.points[:maps]), true_points, VOXEL, is_aligned=True)
    chance = compare(torch.cat(kept.chance[:maps]), true_points, VOXEL, is_aligned=True)
    still = truth[:, :3, 3] - truth[:, :3, 3].mean(0)
    try:
        ate: float | None = trajectory_errors(poses, truth).ate
    except BadRequest:
        ate = None
    return {
        "abs_rel": depth_errors(depth, true).abs_rel,
        "chance": depth_errors(mean_map(2 * true.shape[-1])[::2, ::2].expand_as(true), true).abs_rel,
        "rotation_ratio": motion.rotation_ratio, "translation_ratio": motion.translation_ratio,
        "ate": ate, "ate_still": float(still.norm(dim=1).square().mean().sqrt()),
        "accuracy": cloud.accuracy.mean, "accuracy_chance": chance.accuracy.mean,
        "completion": cloud.completion.mean, "completion_chance": chance.completion.mean,
        "normals": cloud.normals, "normals_chance": chance.normals,
    }  # fmt: skip
