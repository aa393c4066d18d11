"""Relative pose over pairs and short clips of unseen scenes, beside "no motion" and beside pictures that don't belong
together. B clips, S frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from riverrun.models.geometry.infinitevggt import InfiniteVGGT
from riverrun.models.geometry.vggt import VGGT
from riverrun.train.geometry import FRAMES, HELD_OUT, HELD_OUT_CANVASES, KINDS, held_out
from riverrun.train.geometry_frames import CAPTION_MOTIONS, Batch, Clip, batch_of, caption_clip, yard_clip
from riverrun.train.geometry_measure import score
from riverrun.train.geometry_rooms import MOVES, room
from riverrun.train.geometry_start import FIELD_OF_VIEW

PAIR, PASS = (0, FRAMES - 1), (0, 2, 5, 7, FRAMES - 1)
LEAST_TURN, LEAST_MOVE = 0.5, 0.02  # degrees and units: below them a ratio says nothing


def pairs(model: InfiniteVGGT, scenes: int) -> list[dict[str, Any]]:
    """A row for each kind of scene and, of those that have a motion by name, for each motion."""
    return [_row(model.model, name, batch) for name, batch in _batches(model.config.image, scenes)]


def _batches(side: int, scenes: int) -> Iterator[tuple[str, Batch]]:
    for kind in KINDS:
        yield kind, held_out(kind, side, scenes)
    few = max(2, scenes // 4)
    numbers = range(HELD_OUT + 1000, HELD_OUT + 1000 + few)
    rooms = [room(n, HELD_OUT_CANVASES, FRAMES, side, FIELD_OF_VIEW) for n in numbers]
    yards = [yard_clip(n, FRAMES, side, True) for n in numbers]
    yield "rooms, 5 frames", _batch(rooms, PASS)
    yield "yards, 5 frames", _batch(yards, PASS)
    for move in MOVES:
        yield f"rooms {move}", _batch([room(n, HELD_OUT_CANVASES, FRAMES, side, FIELD_OF_VIEW, move)
                                       for n in numbers], PAIR)  # fmt: skip
    for motion in CAPTION_MOTIONS:
        yield f"captions {motion}", _batch([caption_clip(n, 2, side, True, 8, motion) for n in numbers], (0, 1))


def _batch(clips: Sequence[Clip], chosen: Sequence[int]) -> Batch:
    return batch_of(clips, [chosen] * len(clips), FIELD_OF_VIEW)


def _row(model: VGGT, name: str, batch: Batch) -> dict[str, Any]:
    found = score(model, batch)
    strangers = replace(batch, images=torch.cat([batch.images[:, :1], batch.images[:, 1:].roll(1, dims=0)], dim=1))
    control = score(model, strangers)
    turns, moves = found.rotation_still > LEAST_TURN, found.translation_still > LEAST_MOVE
    return {
        "pairs": name, "scenes": len(batch.images),
        "rotation": found.rotation, "rotation_still": found.rotation_still,
        "rotation_ratio": found.rotation / found.rotation_still if turns else None,
        "strangers": control.rotation / found.rotation_still if turns else None,
        "translation": found.translation, "translation_still": found.translation_still,
        "translation_ratio": found.translation / found.translation_still if moves else None,
        "translation_strangers": control.translation / found.translation_still if moves else None,
        "abs_rel": found.depth, "mean_map": found.mean_map, "constant": found.constant,
    }  # fmt: skip
