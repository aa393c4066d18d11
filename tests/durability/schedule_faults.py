"""What goes wrong in a schedule, and when: drawn from its seed, counted in messages."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from schedule_ledger import PROMPTS
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
    "controller away": 1,
    "redis away": 3,
    "redis failed over": 3,
    "redis emptied": 1,
    "blobs full": 1,
    "blobs away": 2,
    "blob damaged": 2,
    "migrated": 5,
    "drained": 1,
    "suspended": 3,
    "paused": 2,
    "prompt": 6,
    "refused prompt": 1,
    "disconnected": 3,
    "finished": 1,
}

RIVALS = 0.25
"""Share of the schedules that have one."""

SOON_AFTER = (
    "both killed",
    "both killed",
    "gateway frozen and left",
    "redis failed over",
    "actor killed",
    "blob damaged",
)
"""What strikes just after something else: a control is on its way, or the store has lost what was just written."""


@dataclass(frozen=True)
class Fault:
    """at: the message before which it strikes."""

    at: int
    kind: str


@dataclass
class Faults:
    due: list[Fault]
    weather: Weather

    def add(self, faults: list[Fault]) -> None:
        self.due = sorted([*self.due, *faults], key=lambda fault: fault.at)


def draw_faults(dice: random.Random, most: int) -> Faults:
    count = dice.randint(0, most)
    span = dice.choice((30, 60, 120))
    kinds = dice.choices(list(KINDS), list(KINDS.values()), k=count)
    due = [Fault(dice.randint(8, span), kind) for kind in kinds]
    if dice.random() < 0.4:
        at = dice.randint(8, span)
        due += [Fault(at, "prompt"), *(Fault(at := at + dice.randint(0, 12), dice.choice(SOON_AFTER)) for _ in "12")]
    due.sort(key=lambda fault: fault.at)
    due += [Fault(span + 40, "finished")]
    share = dice.choice((0.0, 0.0, 0.02, 0.1))
    weather = Weather(
        share * dice.choice((0, 0, 0.3)), share * dice.choice((0, 1, 3)), share, dice.choice((0.05, 2, 40))
    )
    return Faults(due, weather)


def draw_rivals(dice: random.Random) -> list[Fault]:
    """Now and then, what brings two runners of one session to one step."""
    return [Fault(dice.randint(10, 40), "rival")] if dice.random() < RIVALS else []


def strike(show: Any, fault: Fault) -> None:
    """It happens now, between two turns of the loop."""
    if show.viewer.over:
        return
    world, dice, at = show.world, show.dice, show.current
    span = dice.choice(SPANS)
    until = world.loop._now + span
    done = fault.kind
    match fault.kind:
        case "actor killed":
            done = _kill_actor(show) and done
        case "gateway killed":
            show.kill(at)
        case "both killed":
            _kill_actor(show)
            show.kill(at)
        case "moved to another gateway":
            show.leave(at)
        case "gateway frozen":
            at.frozen_until = until
        case "gateway frozen and left":
            at.frozen_until = until
            show.leave(at)
        case "actor frozen":
            done = _freeze_actor(show, until) and done
        case "rival" if at.runs and not show.case.sent:
            _rival(show, at)
        case "controller away":
            show.controller.away_until = until
        case "redis away":
            show.store.away_until = until
        case "redis failed over":
            show.store.fail_over(dice.randint(1, 3))
            show.look_soon()
        case "redis emptied":
            show.store.empty()
            show.look_soon()
        case "blobs full":
            show.disk.is_full = True
            world.loop.call_later(span, setattr, show.disk, "is_full", False)
        case "blobs away":
            show.disk.away_until = until
        case "blob damaged":
            done = _damage(show) and done
        case "migrated" if at.runs:
            stage, actor = dice.choice(show.case.graph.order()), dice.choice(["", *world.actors])
            _do(show, at, "migrated", lambda: at.host.migrate(show.session, stage, actor))
        case "drained" if at.runs and world.actors:
            actor, must = dice.choice(list(world.actors)), dice.random() < 0.5
            _do(show, at, "drained", lambda: at.host.leave({actor}, must))
        case "suspended" if at.runs:
            _do(show, at, "suspended", lambda: at.host.suspend(show.session, "put away"))
        case "paused":
            show.viewer.control("pause", True)
            world.loop.call_later(min(span, 3.0), show.viewer.control, "pause", False)
        case "prompt" if not show.case.sent:
            show.viewer.control("prompt", PROMPTS[show.viewer.revision + 1])
        case "refused prompt" if not show.case.sent:
            show.viewer.control("prompt", "")
        case "disconnected":
            show.viewer.cut(dice.choice((0.0, 0.05, 5.0)))
        case "finished" if not show.case.frames and not show.case.sent:
            show.viewer.finish()
        case _:
            done = ""
    if done:
        world.struck[done] += 1


def _rival(show: Any, at: Any) -> None:
    """A gateway stands still for a short time and its client goes to another one, where it pauses, takes no frame, and
    gives a prompt when the first one is awake: that may make the step that is to carry it."""
    loop, viewer, span = show.world.loop, show.viewer, show.world.dice.choice((0.1, 0.3, 1.0))
    at.frozen_until = loop._now + span
    show.leave(at)
    viewer.nap_s = span + 0.15
    loop.call_soon(viewer.control, "pause", True)  # it has left then
    loop.call_later(span + 0.1, lambda: viewer.control("prompt", PROMPTS[viewer.revision + 1]))
    loop.call_later(span + 0.2, viewer.control, "pause", False)


def _kill_actor(show: Any) -> bool:
    if show.world.actors:
        name = show.dice.choice(list(show.world.actors))
        show.controller.kill(name, show.dice.choice((0.0, 0.5, 5.0, 100.0)))
        return True
    return False


def _freeze_actor(show: Any, until: float) -> bool:
    if show.world.actors:
        show.dice.choice(list(show.world.actors.values())).frozen_until = until
        return True
    return False


def _damage(show: Any) -> bool:
    """The newest blob of a stage, of each stage once."""
    disk = show.disk
    stages = sorted({path.split("/")[1] for path in disk.paths} - {p.split("/")[1] for p in disk.damaged})
    if not stages:
        return False
    stage = show.dice.choice(stages)
    disk.damaged.add([path for path in disk.paths if path.split("/")[1] == stage][-1])
    return True


def _do(show: Any, gateway: Any, what: str, work: Callable[[], Awaitable[None]]) -> None:
    """An order to a gateway; that it can't be done now is no fault."""

    async def tried() -> None:
        try:
            await work()
            show.world.struck[f"{what}: done"] += 1
        except (BadRequest, Unavailable, Corrupt) as error:
            show.world.struck[f"{what}: refused, {type(error).__name__}"] += 1
        except asyncio.CancelledError:
            raise

    gateway.start(tried())
