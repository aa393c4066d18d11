"""The controls of one session, from their arrival to their last receipt.

arrive -> logged -> `received` -> (prompts) encoded, while the stream goes on -> handed to the stages that take the kind
-> carried by a step, logged with it -> `applied` with the first chunk made, or `rejected`. Order is kept all the way.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from riverrun.graphs.items import Receipt, ReceiptStage
from riverrun.graphs.keeper import RecordKeeper
from riverrun.graphs.stage import EncoderHandle, StepReply
from riverrun.graphs.steplog import StepLog
from riverrun.graphs.waiting import Clock, within
from riverrun.models.base import BadRequest, Control, Corrupt, Description, Unavailable
from riverrun.store.records import DECIDED, ENDS, REFUSED, ControlEntry

MAX_WAITING = 64
REMEMBERED = 64
PAUSE = "pause"
PROMPT = "prompt"


@dataclass(frozen=True)
class _Arrival:
    control: Control
    named: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Given:
    """A control that a stage was given before its runner knew: by this step, in force from this chunk and frame of its
    first output on, unless the model refused it (why)."""

    step: int
    chunk: int
    frame: int
    why: str = ""


class ControlDesk:
    """tell: gives a receipt to the controller. hand: gives a control to a stage. pause: stops or starts the sources and
    returns where that takes effect, as (chunk, frame)."""

    def __init__(
        self,
        descriptions: Mapping[str, Description],
        encoders: Mapping[str, EncoderHandle],
        keeper: RecordKeeper,
        clock: Clock,
        encode_s: float,
        tell: Callable[[Receipt], None],
        hand: Callable[[str, Control], None],
        pause: Callable[[bool], Awaitable[tuple[int, int]]],
    ):
        self._descriptions = descriptions
        self._encoders = encoders
        self._keeper = keeper
        self._clock = clock
        self._encode_s = encode_s
        self._tell = tell
        self._hand = hand
        self._pause = pause
        self._last = self._paused_by = 0
        self._receipts: OrderedDict[int, list[Receipt]] = OrderedDict()
        self._pending: dict[int, set[str]] = {}
        self._uncarried: dict[int, set[str]] = {}  # stages that have yet to carry a control
        self._given: Callable[[str, int], Given | None] = lambda stage, revision: None
        self._logs: Mapping[str, StepLog] = {}
        self._arrivals: asyncio.Queue[_Arrival] = asyncio.Queue()
        self._encodings: asyncio.Queue[_Arrival] = asyncio.Queue()

    async def go_on(
        self,
        lines: Sequence[ControlEntry],
        logs: Mapping[str, StepLog],
        given: Callable[[str, int], Given | None],
    ) -> None:
        """Takes up the control log of a session that others have run before.

        logs: by stage; they get what each step carried that may be made again. given: what a stage that lives was given
        under the runner before, whether that could be logged or not. What has arrived and was not carried by all its
        stages is handed on again, and the last pause holds.
        """
        self._given, self._logs = given, logs
        carried = {(line.revision, line.stage) for line in lines if line.step >= 0}
        for line in lines:
            self._last = max(self._last, line.revision)
            if 0 <= line.step < logs[line.stage].base:
                continue
            if line.kind == ENDS:
                logs[line.stage].ends_at = line.step
            elif line.kind == DECIDED:
                logs[line.stage].decisions[line.step] = line.value
            elif line.step >= 0 and line.kind != REFUSED:
                await self._carried_before(line, logs[line.stage])
        arrived = {line.revision: line for line in lines if line.step < 0 and line.kind not in (ENDS, DECIDED)}
        for _, line in sorted(arrived.items()):  # a line may be there twice, and the second time late
            control = Control(line.revision, line.kind, line.value)
            if line.kind == PAUSE:
                self._keeper.handled(line.revision)
                await self._pause(line.value)
                continue
            targets = [s for s in self._targets(control, line.stage) if (line.revision, s) not in carried]
            found = [s for s in targets if await self._is_given(control, s) or await self._is_overtaken(control, s)]
            if due := tuple([s for s in targets if s not in found]):
                self._receipts[line.revision] = []
                self._pending[line.revision], self._uncarried[line.revision] = set(due), set(due)
                self._encodings.put_nowait(_Arrival(control, line.stage, due))
            else:
                self._keeper.handled(line.revision)

    async def _carried_before(self, line: ControlEntry, log: StepLog) -> None:
        control = await self._embedded(Control(line.revision, line.kind, line.value), line.stage)
        known = {c.revision: c for c in log.controls.get(line.step, ())}
        known[line.revision] = control
        log.controls[line.step] = tuple(each for _, each in sorted(known.items()))  # a line may come twice, or late

    async def _is_overtaken(self, control: Control, stage: str) -> bool:
        """Whether a stage has carried a newer one: then it was given this one no later, and the line that said so is
        lost. It is logged with that one, before it."""
        steps = sorted(self._logs[stage].controls.items())
        step = next((step for step, carried in steps if any(c.revision > control.revision for c in carried)), None)
        if step is None:
            return False
        line = ControlEntry(control.revision, control.kind, control.value, stage, step)
        await self._keeper.log(line)
        await self._carried_before(line, self._logs[stage])
        return True

    async def _is_given(self, control: Control, stage: str) -> Given | None:
        """Where a stage was given a control under the runner before, which did not come to log it, or could not: it is
        logged now."""
        given = self._given(stage, control.revision)
        if given:
            kind, value = (REFUSED, None) if given.why else (control.kind, control.value)
            carried = ControlEntry(control.revision, kind, value, stage, given.step, given.chunk)
            await self._keeper.log(carried)
            if kind != REFUSED and given.step >= self._logs[stage].base:
                await self._carried_before(carried, self._logs[stage])
        return given

    def take(self, control: Control, stage: str) -> None:
        """Raises BadRequest (revision not rising, kind, stage, value), Unavailable (too many are waiting).

        A revision that was taken before gives its receipts again and does nothing else.
        """
        if control.revision in self._receipts:
            for receipt in self._receipts[control.revision]:
                self._tell(receipt)
            return
        if control.revision <= self._last:
            raise BadRequest(f"control revision {control.revision} must be above the last one, {self._last}")
        targets = self._targets(control, stage)
        if len(self._pending) >= MAX_WAITING:
            raise Unavailable(f"{MAX_WAITING} controls are waiting to be applied; send the next when one was")
        if self._keeper.is_full:
            raise Unavailable("too many controls since the last checkpoint; send the next when another was taken")
        self._last = control.revision
        self._receipts[control.revision] = []
        while len(self._receipts) > REMEMBERED + MAX_WAITING:
            self._receipts.popitem(last=False)
        self._pending[control.revision], self._uncarried[control.revision] = set(targets), set(targets)
        self._arrivals.put_nowait(_Arrival(control, stage, targets))

    def check(self) -> None:
        """Raises Corrupt if more is remembered than may be, or a control waits whose receipts are forgotten."""
        forgotten = sorted(set(self._pending) - set(self._receipts))
        if forgotten or len(self._pending) > MAX_WAITING or len(self._receipts) > REMEMBERED + MAX_WAITING:
            raise Corrupt(
                f"{len(self._pending)} controls wait and {len(self._receipts)} are remembered, not {forgotten}"
            )

    def _targets(self, control: Control, stage: str) -> tuple[str, ...]:
        if control.kind == PAUSE:
            if not isinstance(control.value, bool):
                raise BadRequest(f"pause must be true or false, got {control.value!r}")
            return ()
        if stage and stage not in self._descriptions:
            raise BadRequest(f"no stage {stage!r}; there are {', '.join(sorted(self._descriptions))}")
        takers = tuple(name for name, d in self._descriptions.items() if control.kind in d.controls)
        chosen = tuple(name for name in takers if name == stage) if stage else takers
        if not chosen:
            kinds = {PAUSE} | {k for n, d in self._descriptions.items() if n == stage or not stage for k in d.controls}
            where = f"stage {stage!r}" if stage else "no stage"
            verb = "does not take" if stage else "takes"
            raise BadRequest(f"{where} {verb} control {control.kind!r}; there are {', '.join(sorted(kinds))}")
        return chosen

    # ---- the two tasks ----

    async def receive(self) -> None:
        """Logs arrivals in order, says `received`, and passes them on. Runs until cancelled."""
        while True:
            arrival = await self._arrivals.get()
            control = arrival.control
            await self._keeper.log(ControlEntry(control.revision, control.kind, control.value, arrival.named))
            self._say(Receipt(control.revision, ReceiptStage.RECEIVED))
            if control.kind == PAUSE and control.value:
                await self._hold(control)
            elif due := await self._due(arrival):
                self._encodings.put_nowait(due)

    async def _due(self, arrival: _Arrival) -> _Arrival | None:
        """What is left to be done of one that comes again after its line was lost with the runner before: some stages
        may have it."""
        control = arrival.control
        found = {stage: await self._is_given(control, stage) for stage in arrival.targets}
        due = tuple(stage for stage, given in found.items() if given is None)
        if due or not found:
            for waiting in (self._pending, self._uncarried):
                waiting.get(control.revision, set()).intersection_update(due)
            return replace(arrival, targets=due)
        self._handled(control.revision)
        last = max((given for given in found.values() if given), key=lambda given: given.frame)
        stage_of = ReceiptStage.REJECTED if last.why else ReceiptStage.APPLIED
        self._settle(Receipt(control.revision, stage_of, last.chunk, last.frame, message=last.why))
        return None

    async def encode(self) -> None:
        """Puts embeddings into prompts and hands controls to their stages, in order. Runs until cancelled."""
        while True:
            arrival = await self._encodings.get()
            if arrival.control.kind == PAUSE:
                await self._hold(arrival.control)
                continue
            try:
                ready = [(stage, await self._embedded(arrival.control, stage)) for stage in arrival.targets]
            except (BadRequest, Unavailable, Corrupt) as error:
                self._settle(Receipt(arrival.control.revision, ReceiptStage.REJECTED, message=str(error)))
                self._handled(arrival.control.revision)
                continue
            for stage, control in ready:
                self._hand(stage, control)

    async def _hold(self, control: Control) -> None:
        """A pause acts at once; its end when what came before it is in force, unless there is a newer pause."""
        if control.revision > self._paused_by:
            self._paused_by = control.revision
            where = await self._pause(control.value)
        else:
            where = await self._pause(True)
        self._handled(control.revision)
        self._settle(Receipt(control.revision, ReceiptStage.APPLIED, *where))

    async def _embedded(self, control: Control, stage: str) -> Control:
        if control.kind != PROMPT or stage not in self._encoders:
            return control
        try:
            embedding = await within(self._clock, self._encode_s, self._encoders[stage].encode(control.value))
        except TimeoutError as error:
            raise Unavailable(f"the prompt encoder did not answer for {self._encode_s:g} s") from error
        return replace(control, embedding=embedding)

    # ---- what the stages say ----

    async def carried(self, stage: str, controls: Sequence[Control], reply: StepReply, next_chunk: int) -> None:
        """Logs which step carried them, before its chunks leave, and says which ones the model refused."""
        refused = dict(reply.rejected)
        for control in controls:
            if control.revision in refused:
                self._settle(Receipt(control.revision, ReceiptStage.REJECTED, message=refused[control.revision]))
            kind, value = (REFUSED, None) if control.revision in refused else (control.kind, control.value)
            await self._keeper.log(ControlEntry(control.revision, kind, value, stage, reply.seq, next_chunk))
            left = self._uncarried.get(control.revision, set())
            left.discard(stage)
            if not left:
                self._handled(control.revision)

    def _handled(self, revision: int) -> None:
        self._uncarried.pop(revision, None)
        self._keeper.handled(revision)

    def made(self, stage: str, revision: int, chunk: int, frame: int) -> None:
        """A stage made its first chunk since it took a control; says `applied` when the last of them did."""
        waiting = self._pending.get(revision)
        if waiting is None:
            return  # another stage refused it
        waiting.discard(stage)
        if not waiting:
            self._settle(Receipt(revision, ReceiptStage.APPLIED, chunk, frame))

    def _settle(self, receipt: Receipt) -> None:
        if self._pending.pop(receipt.revision, None) is not None:
            self._say(receipt)

    def _say(self, receipt: Receipt) -> None:
        if receipt.revision in self._receipts:
            self._receipts[receipt.revision].append(receipt)
        self._tell(receipt)
