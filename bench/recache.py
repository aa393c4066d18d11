"""What does a viewer see of a recovery from `recache` checkpoints?

`python -m riverrun.bench.recache [--quick] [--json FILE]`

A service whose checkpoints are `recache` streams the shipped LongLive to several clients at once, half of them without
sink; then its actor is killed. Each session is compared with itself undisturbed: numbers, times and revisions, which
must be equal, and PSNR of the 100 frames that follow the recovery. `exact` checkpoints stand beside it: there nothing
may
differ. Steps are unbatched. What a `recache` snapshot loses where the sink's keys and values are not in it is measured
on the model alone by `riverrun.bench.checkpoint`, part (d).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from riverrun.bench.options import parsed
from riverrun.bench.report import table, write_json
from riverrun.bench.service import serving
from riverrun.client.aio import AsyncClient
from riverrun.client.types import Frame, Patience
from riverrun.configs import FOLDER
from riverrun.models.base import Corrupt
from riverrun.train.captions import caption
from riverrun.train.scenes import sample_scene

FRAMES = 100
"""Compared after a recovery."""

PATIENCE = Patience(reconnect=600.0)
KINDS = ("recache", "exact")
MODEL = "longlive-world"


@dataclass(frozen=True)
class Plan:
    """prompts: each is streamed with and without sink. before: frames that a client has when the actor is killed.
    after: frames to the end from there, replayed ones that it has already included."""

    prompts: int = 4
    before: int = 216
    after: int = 240


QUICK = Plan(prompts=1, before=216, after=168)


@dataclass(frozen=True)
class Loss:
    """PSNR in dB over the frames after the recovery: of all, of the worst frame, of the first and last twelve. None: no
    difference. changed: frames that differ; is_counted: numbers, times and revisions are those of the undisturbed
    stream."""

    kind: str
    how: str
    streams: int
    changed: int
    mean: float | None
    worst: float | None
    first: float | None
    last: float | None
    is_counted: bool


def loss(kind: str, how: str, pairs: Sequence[tuple[Sequence[Frame], Sequence[Frame]]]) -> Loss:
    """pairs: of streams, the undisturbed one and the other."""
    errors = np.stack([_errors(calm, hit) for calm, hit in pairs])  # (streams, FRAMES)
    return Loss(
        kind,
        how,
        len(pairs),
        int(np.count_nonzero(errors)),
        _db(errors.mean()),
        _db(errors.max()),
        _db(errors[:, :12].mean()),
        _db(errors[:, -12:].mean()),
        all([_about(a) for a in calm] == [_about(b) for b in hit] for calm, hit in pairs),
    )


def _about(frame: Frame) -> tuple[int, float, int]:
    return frame.number, frame.seconds, frame.revision


def _errors(calm: Sequence[Frame], hit: Sequence[Frame]) -> np.ndarray:
    """Mean squared difference of each of the 100 frames from the first that differs; of the last 100, if none does."""
    off = np.array([np.square(a.array.astype(float) - b.array).mean() for a, b in zip(calm, hit, strict=True)])
    begin = int(np.argmax(off > 0)) if off.any() else len(off) - FRAMES
    if len(off) - begin < FRAMES:
        raise Corrupt(f"{len(off) - begin} frames follow the recovery, {FRAMES} are compared; make `after` larger")
    return off[begin : begin + FRAMES]


def _db(error: float) -> float | None:
    return float(10 * np.log10(255**2 / error)) if error > 0 else None


# ---- the streams ----


class Crowd:
    """Clients that stream at once; when each has `before` frames, `strike` is called once."""

    def __init__(self, plan: Plan, address: str) -> None:
        self.plan, self.address = plan, address
        scenes = [sample_scene(random.Random(n)) for n in range(plan.prompts)]
        self.wishes: list[dict[str, Any]] = [
            {"prompt": caption(scene), "seed": n, "sink": sink}
            for n, scene in enumerate(scenes)
            for sink in (True, False)
        ]

    async def stream(self, is_hit: bool) -> list[list[Frame]]:
        """Frames by client. is_hit: the model's actor is killed half-way."""
        there = asyncio.Barrier(len(self.wishes))
        async with AsyncClient(self.address, PATIENCE) as rr:
            return await asyncio.gather(*(self._read(rr, wish, there, is_hit) for wish in self.wishes))

    async def _read(self, rr: AsyncClient, wish: dict[str, Any], there: asyncio.Barrier, is_hit: bool) -> list[Frame]:
        length = self.plan.before + self.plan.after
        stream = await rr.stream("generate", frames=length, lead=0.0, **wish)
        frames: list[Frame] = []
        async for frame in stream:
            frames.append(frame)
            if is_hit and len(frames) == self.plan.before and await there.wait() == 0:
                status = await rr.status()
                os.kill(next(actor.pid for actor in status.actors if actor.model == MODEL), signal.SIGKILL)
        return frames


def measure(plan: Plan, kind: str) -> list[Loss]:
    with tempfile.TemporaryDirectory(prefix="riverrun-bench-") as folder:
        model = yaml.safe_load((FOLDER / "models" / f"{MODEL}.yaml").read_text())
        path = Path(folder, f"{MODEL}.yaml")
        path.write_text(yaml.safe_dump(model | {"actor": {"max_batch": 1, "max_sessions": 2 * plan.prompts}}))
        models = f"models=[world-text,{path}]"
        with serving(models, "ray_address=local", f"checkpoints.kind={kind}", "idle_timeout_s=600") as service:
            crowd = Crowd(plan, service.address)
            calm, hit = (asyncio.run(crowd.stream(is_hit)) for is_hit in (False, True))
    found = list(zip(crowd.wishes, calm, hit, strict=True))
    hows = {"sink, its keys stored": True, "no sink": False}
    return [loss(kind, how, [(a, b) for wish, a, b in found if wish["sink"] is sink]) for how, sink in hows.items()]


def main() -> None:
    args = parsed("recache", __doc__ or "", None)
    plan = QUICK if args.quick else Plan()
    losses = [each for kind in KINDS for each in measure(plan, kind)]
    print(f"\nPSNR of the {FRAMES} frames after a recovery, against the undisturbed stream (-: equal to the bit)")
    columns = (
        "checkpoints",
        "session",
        "streams",
        "frames that differ",
        "mean dB",
        "worst frame",
        "first 12",
        "last 12",
    )
    print(table((*columns, "counts equal"), [tuple(asdict(each).values()) for each in losses]))
    if args.json:
        figures: dict[str, list[Any]] = {"losses": [asdict(each) for each in losses]}
        write_json(args.json, "recache", {"quick": args.quick, **asdict(plan)}, figures)


if __name__ == "__main__":
    main()
