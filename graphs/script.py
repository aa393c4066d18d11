"""Controls at given frames, exact whatever the timing: a session opened with a script needs nobody to send them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from riverrun.graphs.controls import PROMPT
from riverrun.graphs.opening import answer
from riverrun.graphs.stage import EncoderHandle
from riverrun.graphs.waiting import Clock
from riverrun.models.base import BadRequest, Control, Description
from riverrun.store.records import ScriptEntry


@dataclass(frozen=True)
class TimedControl:
    """`control` comes into force with the first chunk that begins at or after frame `at_frame`. stage "": all."""

    at_frame: int
    control: Control
    stage: str = ""


def written(script: Sequence[TimedControl]) -> tuple[ScriptEntry, ...]:
    """As the session's record keeps it, for whoever goes on with it."""
    return tuple(ScriptEntry(t.at_frame, t.control.revision, t.control.kind, t.control.value, t.stage) for t in script)


def read(entries: Sequence[ScriptEntry]) -> tuple[TimedControl, ...]:
    """What `written` has written."""
    return tuple(TimedControl(e.at_frame, Control(e.revision, e.kind, e.value), e.stage) for e in entries)


class ScriptRefused(BadRequest):
    """A stage takes no such value, and nobody is there to send another."""


class Script:
    """What one stage is given, by frames of its first output port."""

    def __init__(self, controls: Sequence[TimedControl] = ()):
        self._waiting = sorted(controls, key=lambda timed: timed.at_frame)
        self._revisions = frozenset(timed.control.revision for timed in controls)

    def due(self, frame: int) -> tuple[Control, ...]:
        """What the step has to carry whose first chunk begins at `frame`; each is given out once."""
        due = [timed.control for timed in self._waiting if timed.at_frame <= frame]
        self._waiting = self._waiting[len(due) :]
        return tuple(due)

    def check(self, rejected: Sequence[tuple[int, str]]) -> None:
        """Raises ScriptRefused if one of its controls is among those a stage has refused."""
        for revision, why in rejected:
            if revision in self._revisions:
                raise ScriptRefused(f"control {revision}: {why}")


async def write_scripts(
    script: Sequence[TimedControl],
    descriptions: Mapping[str, Description],
    encoders: Mapping[str, EncoderHandle],
    clock: Clock,
    encode_s: float,
    is_done: Callable[[str, int], bool] = lambda stage, revision: False,
) -> dict[str, Script]:
    """By stage, the controls it takes, prompts encoded, so that none is refused half-way. is_done: whether a stage was
    given a control before, under another runner.

    Raises BadRequest for a control that the stage it names, or no stage at all, takes.
    """
    found: dict[str, list[TimedControl]] = {name: [] for name in descriptions}
    for timed in script:
        for stage in _takers(timed, descriptions):
            if is_done(stage, timed.control.revision):
                continue
            found[stage].append(replace(timed, control=await _encoded(timed.control, stage, encoders, clock, encode_s)))
    return {name: Script(controls) for name, controls in found.items()}


def _takers(timed: TimedControl, descriptions: Mapping[str, Description]) -> list[str]:
    kind = timed.control.kind
    takers = [n for n, about in descriptions.items() if timed.stage in ("", n) and kind in about.controls]
    if not takers and timed.stage in descriptions:
        there = ", ".join(descriptions[timed.stage].controls) or "none"
        raise BadRequest(f"control {timed.control.revision}: stage {timed.stage!r} takes no {kind!r}; it takes {there}")
    if not takers:
        raise BadRequest(f"control {timed.control.revision}: no stage takes {kind!r}")
    return takers


async def _encoded(
    control: Control, stage: str, encoders: Mapping[str, EncoderHandle], clock: Clock, encode_s: float
) -> Control:
    if control.kind != PROMPT or stage not in encoders:
        return control
    embedding = await answer(clock, encode_s, encoders[stage].encode(control.value), "the prompt encoder")
    return replace(control, embedding=embedding)
