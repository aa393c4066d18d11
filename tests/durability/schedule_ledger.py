"""What a client must be given: every frame once, in order, and the one that it would be in an undisturbed run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from schedule_graphs import Case, Line, prompts

from riverrun.graphs.items import Frame
from riverrun.store.records import DECIDED, ControlEntry

PROMPTS = prompts(40)


class Violation(AssertionError):
    """Something was lost, came twice, or is not what it was."""


class Excused(Exception):
    """It can't be kept: the store has taken a line of the log and lost it, before its runner could tell it again."""


def demand(true: Any, what: str) -> None:
    if not true:
        raise Violation(what)


class Ledger:
    """The frames of one output. seen: which prompt each chunk of the source was made under. applied: by revision, from
    which frame of the source on its control was said to be in force. forgotten: lines that the store has lost.
    prompted: revisions of the prompts that were sent. excuse: is told of what a lost line excuses."""

    def __init__(
        self,
        case: Case,
        line: Line | None,
        turned: Any,
        applied: Mapping[int, int],
        forgotten: Callable[[], Collection[ControlEntry]],
        prompted: Collection[int],
        excuse: Callable[[str], None],
    ):
        self.case, self.line, self.turned, self._applied = case, line, turned, applied
        self._forgotten, self._prompted, self._excuse = forgotten, prompted, excuse
        self.count = 0
        self.revision = 0
        self.seen: dict[int, int] = {}
        self._group = (0, 0, 0)  # of a stage of chance: groups before, how many in this one, which is next

    def take(self, frame: Frame) -> None:
        where = f"{frame.port} frame {frame.number}"
        demand(frame.number == self.count, f"{where} came where {self.count} was due")
        self.count += 1
        if frame.revision < self.revision:
            self._must_be_forgotten(range(frame.revision + 1, self.revision + 1), where, "revision went back")
        self.revision = frame.revision
        if self.line:
            at = self.line.pts(frame.number)
            demand(frame.pts == at, f"{where} is shown at {frame.pts}, not {at}")
            self._compare(frame, self.line.of(frame.number), self.turned, where)
        else:
            self._compare(frame, self._next_by_chance(frame, where), None, where)

    def _must_be_forgotten(self, revisions: Collection[int], where: str, what: str) -> None:
        """Whatever a control did may be undone only if its line is lost."""
        lost, undone = {line.revision for line in self._forgotten()}, {r for r in revisions if r in self._prompted}
        demand(undone and undone <= lost, f"{where}: {what} (controls {sorted(undone)}, lost {sorted(lost)})")
        self._excuse("what a control did was undone, its line was lost")

    def _next_by_chance(self, frame: Frame, where: str) -> int:
        groups, count, index = self._group
        said, place, mark = (int(v) for v in frame.array[0, 1])
        fits = mark == 7 and place == index and (not index or said == count)
        if not fits and self._is_decision_lost():
            raise Excused("a decision's line was lost")
        demand(fits, f"{where} is {place} of {said}")
        self._group = (groups, said, index + 1) if index + 1 < said else (groups + 1, 0, 0)
        return 2 * groups + index

    def _is_decision_lost(self) -> bool:
        return any(line.kind == DECIDED for line in self._forgotten())

    def _compare(self, frame: Frame, number: int, turned: Any, where: str) -> None:
        if self.case.sent:
            wanted = turned(self.case.source(number, "input"))
            return demand(np.array_equal(frame.array, wanted), f"{where} is not as it was undisturbed")
        prompt = next((r for r in range(frame.revision, -1, -1) if self._is(frame, number, PROMPTS[r], turned)), None)
        if prompt is None and self.line is None and self._is_decision_lost():
            raise Excused("a decision's line was lost")
        if prompt is None and (both := self._prompts_of_branches(frame, number)):
            self._must_be_forgotten(range(both[0] + 1, both[1] + 1), where, f"it is of the prompts {both}")
            raise Excused("the branches of a diamond have different prompts, the line of the step between was lost")
        if prompt is None:
            raise Violation(f"{where} is not as it was undisturbed (revision {frame.revision})")
        self._look_at_prompt(prompt, number, where)

    def _look_at_prompt(self, prompt: int, number: int, where: str) -> None:
        """It changes at the borders of chunks only, never back, and where it was said that it would."""
        chunk = number // self.case.chunk
        before = {r for c, r in self.seen.items() if c <= chunk}
        if undone := {r for r in before if r > prompt}:
            self._must_be_forgotten(undone, where, f"its prompt is {prompt} again")
        elif self.seen.get(chunk, prompt) != prompt:
            raise Violation(f"{where}: its prompt changed within chunk {chunk}")
        late = {r for r, first in self._applied.items() if number >= first and r > prompt}
        if late:
            self._must_be_forgotten(late, where, f"its prompt is {prompt}, after others were in force")
        early = [r for r, first in self._applied.items() if number < first and r == prompt]
        if early:
            self._must_be_forgotten(early, where, f"its prompt is in force before frame {self._applied.get(prompt)}")
        self.seen[chunk] = prompt
        if len(self.seen) > 8:
            del self.seen[min(self.seen)]

    def _prompts_of_branches(self, frame: Frame, number: int) -> tuple[int, ...]:
        """The two prompts under which the branches that come together in a frame were made, lower one first."""
        if self.case.joined is None:
            return ()
        sources = {r: self.case.source(number, PROMPTS[r]) for r in range(frame.revision + 1)}
        for left, right in itertools.permutations(sources, 2):
            if np.array_equal(frame.array, self.case.joined(sources[left], sources[right])):
                return min(left, right), max(left, right)
        return ()

    def _is(self, frame: Frame, number: int, prompt: str, turned: Any) -> bool:
        wanted = self.case.source(number, prompt)
        if turned is not None:
            return np.array_equal(frame.array, turned(wanted))
        wanted = wanted.copy()
        wanted[0, 1] = frame.array[0, 1]
        return np.array_equal(frame.array, wanted)
