"""One decision for the workers of a model: whom to place, how many workers there should be, and who moves.

The controller calls it once a second over what its actors say of themselves. Pure: what it must remember is an argument
and a result, and what is planned is done on the floor that it was given, nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from riverrun.cluster.autoscale import ScaleMemory, ScaleRule, target
from riverrun.cluster.bottleneck import Floor, consolidate, rebalance
from riverrun.cluster.fleet import Move, Plan, Session


@dataclass(frozen=True)
class Settings:
    """rule: how many workers. eta: what a move's cost weighs. A move must gain more than `least_gain_ms`, and more than
    `least_share` of the bottleneck: measured latencies are noisy, and a session should not go back and forth with them.
    rounds, most_moves: of one decision. of_pair: see `Floor.best_move`. moves, scales: whether there are any.
    """

    rule: ScaleRule = field(default_factory=ScaleRule)
    eta: float = 0.35
    least_gain_ms: float = 5.0
    least_share: float = 0.0
    rounds: int = 128
    most_moves: int = 12
    of_pair: bool = True
    moves: bool = True
    scales: bool = True


def decide(
    floor: Floor,
    waiting: Sequence[Session],
    now: float,
    memory: ScaleMemory,
    settings: Settings,
    idle: int = 0,
    starting: int = 0,
) -> tuple[Plan, ScaleMemory]:
    """Places for those that wait, then the number of workers, then moves: off workers that are let go, and off the
    slowest one while that gains more than it costs (`Γ = L − L′ − η·κ`).

    idle: sessions that hold a place and want no chunks. starting: workers that are on their way, and the first to be
    let go. Workers on the floor that are cordoned already do not count. Under overload, where workers are at their
    most, who finds no place goes on waiting.
    """
    moves = [move for session in waiting if (move := floor.place(session))]
    desks = [desk for desk in floor.desks.values() if not desk.is_cordoned]
    count = len(desks) + starting
    why, released = "the number of workers is fixed", list[str]()
    if settings.scales:
        active = len(floor.home) + len(waiting) - len(moves) + idle
        wanted = target(settings.rule, memory, now, active, count)
        count, why, memory = wanted.workers, wanted.why, wanted.memory
    if count < len(desks):
        moved, released = let_go(floor, len(desks) - count, settings.moves)
        moves += moved
    if settings.moves:
        least = max(settings.least_gain_ms, settings.least_share * floor.bottleneck_ms)
        moves += rebalance(floor, settings.eta, least, settings.rounds, settings.most_moves, settings.of_pair)
    return Plan(max(count, len(desks) - len(released)), tuple(moves), tuple(released), {"scale": why}), memory


def let_go(floor: Floor, many: int, moves: bool) -> tuple[list[Move], list[str]]:
    """Moves that empty so many of the lightest workers, and which could be emptied; without moves, only empty ones."""
    open_desks = [desk for desk in floor.desks.values() if not desk.is_cordoned]
    lightest = sorted(open_desks, key=lambda desk: (len(desk.sessions), desk.id))[:many]
    names = [desk.id for desk in lightest if moves or not desk.sessions]
    moved, kept = consolidate(floor, names)
    return moved, [name for name in names if name not in kept]
