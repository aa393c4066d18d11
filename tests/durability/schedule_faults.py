"""What goes wrong in a schedule, and when: drawn from its seed, counted in messages."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

from schedule_client import PROMPTS
from schedule_world import Weather

from riverrun.models.base import BadRequest, Corrupt, Unavailable

SPANS = (0.02, 0.3, 3.0, 45.0, 200.0)
"""Seconds that something lasts."""

KINDS = {
    "actor killed": 5,
    "gateway killed": 4,
    "both killed": 2,
    "moved to another gateway": 4,
    "gateway frozen": 2,
    "gateway frozen and left": 3,
    "actor frozen": 3,
    "redis away": 3,
    "redis failed over": 3,
    "redis emptied": 1,
    "blobs full": 1,
    "blobs away": 2,
    "blob damaged": 2,
    "migrated": 5,
    "suspended": 3,
    "paused": 2,
    "prompt": 6,
    "refused prompt": 1,
    "disconnected": 3,
    "finished": 2,
}


@dataclass(frozen=True)
class Fault:
    """at: the message before which it strikes."""

    at: int
    kind: str


@dataclass
class Faults:
    due: list[Fault]
    weather: Weather
    may_fail: bool = False


def draw_faults(dice: random.Random, most: int) -> Faults:
    count = dice.randint(0, most)
    span = dice.choice((60, 150, 400))
    kinds = dice.choices(list(KINDS), list(KINDS.values()), k=count)
    due = sorted((Fault(dice.randint(10, span), kind) for kind in kinds), key=lambda f: f.at)
    due += [Fault(span + 100, "finished")]
    share = dice.choice((0.0, 0.0, 0.02, 0.1))
    weather = Weather(
        share * dice.choice((0, 0, 0.3)), share * dice.choice((0, 1, 3)), share, dice.choice((0.05, 2, 40))
    )
    return Faults(due, weather)


def strike(show: Any, fault: Fault) -> None:
    """It happens now, between two turns of the loop."""
    world, dice = show.world, show.dice
    world.struck[fault.kind] += 1
    span = dice.choice(SPANS)
    until = world.loop.time() + span
    at = show.current
    runner = at.runner if at and at.lives else None
    match fault.kind:
        case "actor killed":
            _kill_actor(show)
        case "gateway killed":
            show.kill(at)
        case "both killed":
            _kill_actor(show)
            show.kill(at)
        case "moved to another gateway":
            show.elsewhere = True
            show.viewer.cut(0.0)
        case "gateway frozen":
            at.frozen_until = until
        case "gateway frozen and left":
            at.frozen_until = until
            show.elsewhere = True
            show.viewer.cut(0.0)
        case "actor frozen":
            if world.actors:
                dice.choice(list(world.actors.values())).frozen_until = until
        case "redis away":
            world.store.away_until = until
        case "redis failed over":
            world.store.fail_over(dice.randint(1, 3))
        case "redis emptied":
            world.store.empty()
        case "blobs full":
            world.blobs.is_full = True
            world.loop.call_later(span, setattr, world.blobs, "is_full", False)
        case "blobs away":
            world.blobs.away_until = until
        case "blob damaged":
            _damage(show)
        case "migrated" if runner:
            _do(show, at, _migrate(show, runner))
        case "suspended" if runner:
            _do(show, at, runner.suspend("put away"))
        case "paused" if runner:
            show.viewer.control("pause", True, runner)
            world.loop.call_later(min(span, 3.0), _unpause, show)
        case "prompt" if not show.case.sent:
            show.viewer.control("prompt", PROMPTS[show.viewer.revision + 1], runner)
        case "refused prompt" if not show.case.sent:
            show.viewer.control("prompt", "", runner)
        case "disconnected":
            show.viewer.cut(dice.choice((0.0, 0.05, 5.0)))
        case "finished":
            if not show.case.frames and not show.case.sent and not show.viewer.over:
                show.viewer.finish(runner)


def _kill_actor(show: Any) -> None:
    if show.world.actors:
        name = show.dice.choice(list(show.world.actors))
        show.world.kill(name, show.dice.choice((0.0, 0.5, 5.0, 100.0)))


def _unpause(show: Any) -> None:
    at = show.current
    show.viewer.control("pause", False, at.runner if at and at.lives else None)


def _damage(show: Any) -> None:
    """The newest blob of a stage, of each stage once."""
    blobs = show.world.blobs
    stages = sorted({path.split("/")[1] for path in blobs.paths} - {p.split("/")[1] for p in blobs.damaged})
    if stages:
        stage = show.dice.choice(stages)
        blobs.damaged.add([path for path in blobs.paths if path.split("/")[1] == stage][-1])


async def _migrate(show: Any, runner: Any) -> None:
    stage = show.dice.choice(show.case.graph.order())
    actor = show.dice.choice(["", *show.world.actors])
    await runner.migrate(stage, actor)


def _do(show: Any, gateway: Any, work: Any) -> None:
    """An order to a gateway; that it can't be done now is no fault."""

    async def tried() -> None:
        try:
            await work
        except (BadRequest, Unavailable, Corrupt) as error:
            show.world.struck[f"order refused: {type(error).__name__}"] += 1
        except asyncio.CancelledError:
            raise

    show.start(gateway, tried())
