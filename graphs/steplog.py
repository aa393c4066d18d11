"""What the steps of one stage carried, so that they can be made again: after a crash, by the same numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from riverrun.models.base import Control


@dataclass
class StepLog:
    """base: steps before it are never made again, and what they carried is forgotten. done: steps made and handed on;
    those before it are repeats. ends_at: the step that flushes a source, once one
    was chosen. controls, decisions: by step, where there were any."""

    base: int = 0
    done: int = 0
    ends_at: int | None = None
    controls: dict[int, tuple[Control, ...]] = field(default_factory=dict)
    decisions: dict[int, Any] = field(default_factory=dict)

    def carry(self, seq: int, waiting: deque[Control]) -> tuple[Control, ...]:
        """The controls of step `seq`: those it carried before, else all that wait. None overtakes one logged later, and
        none comes into a step that is made again."""
        if (
            seq >= self.done
            and seq not in self.controls
            and waiting
            and not any(later > seq for later in self.controls)
        ):
            self.controls[seq] = tuple(waiting)
            waiting.clear()
        return self.controls.get(seq, ())

    def forget(self, before: int) -> None:
        """The stage will never begin again before this step."""
        self.base = before = max(self.base, before)
        self.controls = _from(self.controls, before)
        self.decisions = _from(self.decisions, before)


def _from(entries: Mapping[int, Any], first: int) -> dict[int, Any]:
    return {seq: value for seq, value in entries.items() if seq >= first}
