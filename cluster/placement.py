"""Which actor gets the next session. Pure functions over what the actors say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from riverrun.cluster.bottleneck import Floor
from riverrun.cluster.fleet import Session, Worker
from riverrun.cluster.latency import Latency


@dataclass(frozen=True)
class Load:
    """One actor of a model: sessions it has and may have, bytes set aside for them and those there are (None: no
    limit), and what one session with default parameters keeps and has at most during a step (0: not known). node: the
    machine it runs on.
    """

    actor: str
    sessions: int
    max_sessions: int
    reserved_bytes: int
    max_bytes: int | None = None
    retained_bytes: int = 0
    peak_bytes: int = 0
    node: str = ""

    @property
    def room(self) -> int:
        """How many more sessions with default parameters it can take."""
        places = self.max_sessions - self.sessions
        free = None if self.max_bytes is None else self.max_bytes - self.reserved_bytes
        if free is None or not self.retained_bytes:
            return places
        extra = 0 if self.sessions else self.peak_bytes - self.retained_bytes  # else it is set aside already
        return min(places, max(0, free - extra) // self.retained_bytes)


def shared_node(stages: Sequence[Sequence[Load]]) -> str:
    """The node for a chain of stages, each with the actors that may have it: what one makes for the next then stays on
    that machine. Of those where every stage finds room, the one with most in its tightest stage; "" if there is none,
    or only one stage."""
    if len(stages) < 2:
        return ""
    room = [_room_by_node(loads) for loads in stages]
    nodes = sorted(set(room[0]).intersection(*room[1:]))
    return max(nodes, key=lambda node: min(each[node] for each in room), default="")


def least_loaded(loads: Sequence[Load], node: str = "") -> str | None:
    """The actor with room for most sessions, by places and bytes; then with most bytes free, then first by name. One on
    `node` comes before all others, if it has room.

    None if all places are taken. Where bytes alone are short one is named all the same: it knows what the session that
    is asked for needs, and says what would fit.
    """
    free = [load for load in loads if load.sessions < load.max_sessions]
    if not free:
        return None
    near = [load for load in free if node and load.node == node and load.room > 0]
    return min(near or free, key=lambda load: (-load.room, _taken(load), load.actor)).actor


def least_bottleneck(
    loads: Sequence[Load],
    active: Mapping[str, Sequence[Session]],
    session: Session,
    latency: Latency,
    node: str = "",
) -> str | None:
    """The actor where the slowest chunk of all stays quickest (TurboServe, peers.md §1.2), of several the lighter, then
    the first by name. One on `node` comes before all others, if it has room.

    active: by actor, its sessions that want chunks. Where nobody has room for a usual session: as `least_loaded`.
    """
    free = [load for load in loads if load.room > 0]
    near = [load for load in free if node and load.node == node]
    open_to_it = {load.actor for load in near or free}
    workers = [worker(load, active.get(load.actor, ()), load.actor not in open_to_it) for load in loads]
    move = Floor(workers, latency).place(session)
    return move.target if move else least_loaded(loads, node)


def worker(load: Load, active: Sequence[Session], is_cordoned: bool = False) -> Worker:
    """An actor as decisions see it: sessions that want nothing take a place from it and no time."""
    return Worker(load.actor, len(active) + max(load.room, 0), tuple(active), is_cordoned)


def keeps_headroom(loads: Sequence[Load], chosen: str) -> bool:
    """Whether, with one more session on `chosen`, any one actor may die and its sessions find room on the others.

    Under overload that is refused: a new session less, not a running one.
    """
    after = [replace(each, sessions=each.sessions + (each.actor == chosen)) for each in loads]
    return all(sum(o.room for o in after if o is not lost) >= lost.sessions for lost in after)


def _room_by_node(loads: Sequence[Load]) -> dict[str, int]:
    """Of the actor with most room on each node that has any."""
    room: dict[str, int] = {}
    for load in loads:
        if load.node and load.room > 0:
            room[load.node] = max(load.room, room.get(load.node, 0))
    return room


def _taken(load: Load) -> int:
    """Bytes in use: less than none where there is no limit, by as much as is set aside."""
    return load.reserved_bytes - (load.max_bytes or 0)
