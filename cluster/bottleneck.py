"""Placement and rebalancing by the slowest chunk of the cluster (TurboServe, arXiv 2606.19271; peers.md §1.2).

The bottleneck L is the largest predicted latency over all sessions. A place is sought where L stays least, and moves
are made while one gains more than it costs. Both are greedy and take O(log workers) a session.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from riverrun.cluster.fleet import Move, Session, Worker
from riverrun.cluster.latency import Latency, move_ms


@dataclass
class Desk:
    """One worker while a plan is made."""

    id: str
    places: int
    is_cordoned: bool
    latency: Latency
    sessions: dict[str, Session] = field(default_factory=dict)

    @property
    def room(self) -> int:
        return 0 if self.is_cordoned else self.places - len(self.sessions)

    @property
    def worst_ms(self) -> float:
        """The largest latency on it; 0 where nobody is."""
        return self._worst(len(self.sessions), self.slowest) if self.sessions else 0.0

    @property
    def kind(self) -> tuple[int, float]:
        return self.places, round(self.slowest)

    @property
    def slowest(self) -> float:
        """Of the chunks on it, alone."""
        return max((session.alone_ms for session in self.sessions.values()), default=0.0)

    def with_one(self, session: Session) -> float:
        return self._worst(len(self.sessions) + 1, max(self.slowest, session.alone_ms))

    def without(self, session: Session) -> float:
        others = [other.alone_ms for other in self.sessions.values() if other.id != session.id]
        return self._worst(len(others), max(others)) if others else 0.0

    def _worst(self, n: int, alone: float) -> float:
        return self.latency.chunk_ms(alone, n, self.places)


class Floor:
    """All workers while plans are made: where the next session goes, and what move gains most. It can be kept from
    plan to plan and told what changes, which costs O(log workers) a change.

    Desks that have as many places and an equally slow chunk are of one kind: the lightest of a kind is the best of it,
    so that only the first of each kind is looked at.
    """

    def __init__(self, workers: Iterable[Worker], latency: Latency) -> None:
        self.desks: dict[str, Desk] = {}
        self.home: dict[str, str] = {}
        self._latency = latency
        self._light: dict[tuple[int, float], list[tuple[int, str]]] = {}
        self._heavy: list[tuple[float, str]] = []
        for worker in workers:
            self.add(worker)

    def add(self, worker: Worker) -> None:
        """It has come."""
        held = {session.id: session for session in worker.sessions}
        desk = Desk(worker.id, worker.places, worker.is_cordoned, self._latency, held)
        self.desks[worker.id] = desk
        self.home |= dict.fromkeys(held, worker.id)
        self._file(desk)

    def remove(self, worker: str) -> list[Session]:
        """It is gone; whom it held have no place."""
        desk = self.desks.pop(worker)
        for session in desk.sessions:
            del self.home[session]
        return list(desk.sessions.values())

    def leave(self, session: str) -> None:
        """It needs no place any more. One that has none is no error."""
        if home := self.home.pop(session, None):
            desk = self.desks[home]
            del desk.sessions[session]
            self._file(desk)

    def learn(self, latency: Latency) -> None:
        """Everything is seen by another model of latency from now on."""
        self._latency, self._light, self._heavy = latency, {}, []
        for desk in self.desks.values():
            desk.latency = latency
            self._file(desk)

    def cordon(self, worker: str, is_cordoned: bool = True) -> None:
        """It takes no more, or again."""
        self.desks[worker].is_cordoned = is_cordoned
        self._file(self.desks[worker])

    def put(self, session: Session, worker: str) -> None:
        """Of a session that has no place."""
        self._put(session, self.desks[worker])

    @property
    def bottleneck_ms(self) -> float:
        top = self._slowest()
        return top.worst_ms if top else 0.0

    def lightest(self) -> str | None:
        """With room and least sessions, the first by id of several; None: full."""
        return min(((len(desk.sessions), desk.id) for desk in self._lightest()), default=(0, None))[1]

    def place(self, session: Session) -> Move | None:
        """The worker with the least resulting bottleneck, of several the lighter, then the first by id. None: full."""
        level = self.bottleneck_ms
        best = min(
            ((max(level, desk.with_one(session)), len(desk.sessions), desk.id) for desk in self._lightest()),
            default=None,
        )
        if best is None:
            return None
        self._put(session, self.desks[best[2]])
        return Move(session.id, None, best[2])

    def best_move(
        self, eta: float, skip: frozenset[str] = frozenset(), of_pair: bool = True
    ) -> tuple[float, Move] | None:
        """The largest gain `L - L' - eta * cost` there is of a move off the slowest worker; None where nobody could go.

        skip: sessions that stay where they are. of_pair: L is that of the two workers of the move; else the whole
        cluster's (as published), where nothing is gained while another worker is as slow.
        """
        source = self._slowest()
        if source is None:
            return None
        level, others = source.worst_ms, 0.0 if of_pair else self._second(source)
        found: list[tuple[float, int, float, str, str]] = []
        for session in source.sessions.values():
            if session.id in skip:
                continue
            left = max(source.without(session), others)
            for target in self._lightest(but=source):
                there = target.with_one(session)
                gain = level - max(left, there) - eta * move_ms(session.state_bytes)
                found.append((-gain, session.state_bytes, there, target.id, session.id))
        if not found:
            return None
        loss, _, _, target_id, session_id = min(found)
        return -loss, Move(session_id, source.id, target_id)

    def apply(self, move: Move) -> None:
        """Of a session that has a place."""
        assert move.source is not None
        session = self.desks[move.source].sessions[move.session]
        self.leave(move.session)
        self._put(session, self.desks[move.target])

    def _put(self, session: Session, desk: Desk) -> None:
        desk.sessions[session.id] = session
        self.home[session.id] = desk.id
        self._file(desk)

    def _file(self, desk: Desk) -> None:
        """Entries of an earlier filling stay in the heaps, and are dropped when they come up."""
        if desk.room > 0:
            heapq.heappush(self._light.setdefault(desk.kind, []), (len(desk.sessions), desk.id))
        heapq.heappush(self._heavy, (-desk.worst_ms, desk.id))

    def _lightest(self, but: Desk | None = None) -> Iterator[Desk]:
        for kind, heap in self._light.items():
            aside = []
            while heap:
                count, name = heap[0]
                desk = self.desks.get(name)
                if desk is None or desk.room <= 0 or count != len(desk.sessions) or kind != desk.kind:
                    heapq.heappop(heap)
                elif desk is but:
                    aside.append(heapq.heappop(heap))
                else:
                    yield desk
                    break
            for entry in aside:
                heapq.heappush(heap, entry)

    def _slowest(self) -> Desk | None:
        while self._heavy:
            worst, name = self._heavy[0]
            desk = self.desks.get(name)
            if desk and desk.worst_ms == -worst and desk.sessions:
                return desk
            heapq.heappop(self._heavy)
        return None

    def _second(self, first: Desk) -> float:
        """The bottleneck of all others."""
        entries = []
        second = 0.0
        while self._heavy:
            worst, name = self._heavy[0]
            desk = self.desks.get(name)
            if desk and desk is not first and desk.worst_ms == -worst and desk.sessions:
                second = -worst
                break
            entry = heapq.heappop(self._heavy)
            if desk is first and desk.worst_ms == -worst:
                entries.append(entry)
        for entry in entries:
            heapq.heappush(self._heavy, entry)
        return second


def rebalance(
    floor: Floor, eta: float, least_gain_ms: float, rounds: int = 128, most: int = 12, of_pair: bool = True
) -> list[Move]:
    """Moves off the slowest worker, each the best there is, while one gains more than `least_gain_ms`.

    eta weighs what a move costs; of_pair: see `Floor.best_move`. At most `most` sessions move in a call, and none
    twice. Under overload, where every worker is full, nobody can move and nothing is done.
    """
    moves: dict[str, Move] = {}
    for _ in range(rounds):
        if len(moves) >= most:
            break
        best = floor.best_move(eta, frozenset(moves), of_pair)
        if best is None or best[0] <= least_gain_ms:
            break
        floor.apply(best[1])
        moves[best[1].session] = best[1]
    return list(moves.values())


def consolidate(floor: Floor, released: Sequence[str]) -> tuple[list[Move], list[str]]:
    """Moves that empty these workers, and those of them that could not be emptied: they stay, uncordoned."""
    moves: list[Move] = []
    kept: list[str] = []
    for name in released:
        floor.cordon(name)
    room = sum(desk.room for desk in floor.desks.values())
    for name in released:
        held = list(floor.desks[name].sessions.values())
        if room < len(held):
            floor.cordon(name, False)
            kept.append(name)
            continue
        room -= len(held)
        for session in held:
            floor.leave(session.id)
            placed = floor.place(session)
            assert placed is not None
            moves.append(Move(session.id, name, placed.target))
    return moves, kept
