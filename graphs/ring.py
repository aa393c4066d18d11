"""An output ring: the last chunks of one graph output, by frame number, for whoever reads them.

Chunks are references until somebody wants their frames; then each is fetched once, for all readers. Sent frames are
kept until the controller acks them or more than `keep` of them lie there, so that a reconnect can have them again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from riverrun.graphs.items import Frame
from riverrun.graphs.stage import StageGone
from riverrun.graphs.waiting import Signal
from riverrun.models.base import BadRequest, Chunk, Corrupt, Description
from riverrun.models.forms import FORMS

Fetch = Callable[[Chunk], Coroutine[Any, Any, Chunk]]  # the same with its array as `data`
Spawn = Callable[[Coroutine[Any, Any, None]], object]


def frame_bytes(about: Description, port: str) -> int:
    """Of one frame of an output port; 0 where the model does not say, or frames are small whatever it says."""
    height, width = about.frame_shape or (0, 0)
    return height * width * FORMS[next(p.kind for p in about.outputs if p.name == port)].pixel_bytes


@dataclass
class Slot:
    """A chunk in the ring. first: number of its first frame. release: says that nobody here needs it any more.

    array: [T, ...] once fetched; the reference is dropped then. is_free: `release` was called. lost: the reference
    leads nowhere, its chunk must come again.
    """

    chunk: Chunk
    first: int
    release: Callable[[], None]
    array: np.ndarray | None = None
    loading: bool = False
    lost: bool = False
    is_free: bool = False

    def let_go(self) -> None:
        """Nobody will want it made again: it is here, or not wanted at all."""
        if not self.is_free:
            self.is_free = True
            self.release()

    @property
    def end(self) -> int:
        return self.first + self.chunk.frames

    def pts_of(self, number: int) -> int:
        return self.chunk.time_of(number - self.first)

    def frame(self, port: str, number: int) -> Frame:
        assert self.array is not None
        c, index = self.chunk, number - self.first
        at = self.pts_of(number)
        return Frame(port, number, c.seq, index, at, c.epoch, c.revision, self.array[index, ...], c.trace)


class OutputRing:
    """lossless: a controller reads this port (or none has come yet), so it paces the stages. cursor: the number of the
    frame that goes to the controller next; a reconnect may set it back. sent: how far it ever came. readers: how many
    consumers are attached. made: media time (ticks) that the chunks so far reach to. on_lost: a chunk can't be fetched,
    as who made it is gone; it waits until it comes again. resumed: others have run the session before, so its client
    may be further on than this ring knows. is_cut: it has had its last frame, what is made beyond that is left out; a
    chunk that is cut is let go once the record says so (`noted`), or whoever takes over would take its frames for lost.
    frame_bytes: of one frame, 0 if not known. chunk_frames: of the largest chunk but a flush."""

    def __init__(
        self,
        name: str,
        keep: int,
        fetch: Fetch,
        spawn: Spawn,
        signal: Signal,
        on_lost: Callable[[StageGone], None],
        frame_bytes: int = 0,
        chunk_frames: int = 1,
    ):
        self.name = name
        self.frame_bytes = frame_bytes
        self.chunk_frames = chunk_frames
        self.lossless = True
        self.readers = 0
        self.cursor = 0
        self.sent = 0
        self.acked = 0
        self.next_frame = 0
        self.next_chunk = 0
        self.made = 0
        self._keep_always = self._keep = keep
        self._slots: deque[Slot] = deque()
        self._fetch = fetch
        self._spawn = spawn
        self._signal = signal
        self._on_lost = on_lost
        self.is_closed = False
        self.resumed = self.is_cut = False
        self._noted = 0
        self._unnoted: dict[int, Callable[[], None]] = {}  # by chunk, what to call once it is noted

    def begin_at(self, chunk: int, frame: int, sent: int) -> None:
        """The ring of a session that others have run before: its first chunk and frame have these numbers, and its
        client was sent so many frames."""
        self.next_chunk, self.next_frame = chunk, frame
        self.cursor = self.acked = frame
        self.sent = max(frame, sent)
        self.resumed = True

    @property
    def first_chunk(self) -> int:
        """The first chunk that somebody may still want."""
        return self._slots[0].chunk.seq if self._slots else self.next_chunk

    def __len__(self) -> int:
        """Chunks that are kept here."""
        return len(self._slots)

    @property
    def held(self) -> int:
        """Chunks that may have to be made again."""
        return sum(not slot.is_free for slot in self._slots) + len(self._unnoted)

    def has_room(self) -> bool:
        """Whether another step may be started: less than one chunk lies here that was not sent yet."""
        return not self.lossless or not self._slots or self.cursor > self._slots[-1].first

    def again(self, chunk: Chunk) -> None:
        """A chunk that was here before comes again, as its maker was lost: takes the place of one not yet fetched."""
        for slot in self._slots:
            if slot.chunk.seq == chunk.seq and slot.array is None:
                slot.chunk = replace(chunk, frames=slot.chunk.frames)
                slot.loading = slot.lost = False
                if self.readers:
                    self.load(slot)

    def put(self, chunk: Chunk, release: Callable[[], None]) -> None:
        """Takes the next chunk; with `frames` 0 (all cut off by max_frames) it is counted and released."""
        slot = Slot(chunk, self.next_frame, release)
        self.next_frame = slot.end
        self.next_chunk += 1
        self.made = chunk.time_of(chunk.frames)
        if not chunk.frames:
            release()
            return
        self._slots.append(slot)
        if self.readers:
            self.load(slot)
        self._trim()

    def cut(self, chunk: Chunk, frames: int, release: Callable[[], None]) -> None:
        """As `put`, of the first `frames` frames alone; the output ends there."""
        self.is_cut = True

        def let_go() -> None:
            if chunk.seq < self._noted:
                release()
            else:
                self._unnoted[chunk.seq] = release

        self.put(replace(chunk, frames=frames), let_go)

    def noted(self, chunks: int) -> None:
        """The store has a record that says how many frames there are of so many chunks."""
        self._noted = chunks
        for seq in [seq for seq in self._unnoted if seq < chunks]:
            self._unnoted.pop(seq)()

    def find(self, number: int) -> Slot | None:
        """The chunk that holds frame `number`, if it is here."""
        for slot in reversed(self._slots):
            if slot.first <= number:
                return slot if number < slot.end else None
        return None

    def load(self, slot: Slot) -> None:
        """Starts fetching a chunk's array, once."""
        if not (slot.loading or slot.lost or self.is_closed):
            slot.loading = True
            self._spawn(self._load(slot))

    async def _load(self, slot: Slot) -> None:
        wanted = slot.chunk
        try:
            chunk = await self._fetch(wanted)
        except StageGone as error:
            if slot.chunk is wanted:
                slot.lost = True
                self._on_lost(error)
            return
        if slot.chunk is not wanted:
            return  # it came again meanwhile, and that one is being fetched
        array: np.ndarray = chunk.data
        if len(array) < slot.chunk.frames:
            raise Corrupt(f"chunk {slot.chunk.seq} of {self.name!r} says {slot.chunk.frames} frames, has {len(array)}")
        slot.array = array.view()
        slot.array.flags.writeable = False
        slot.chunk = replace(chunk, data=None)
        self._trim()
        self._signal.notify()

    # ---- the controller's side ----

    def start_for(self, last_received: int | None) -> int:
        """Where a controller begins: after `last_received`, or at the first frame kept.

        Raises Corrupt for frames that are gone, BadRequest for ones never sent.
        """
        kept_from = self._slots[0].first if self._slots else self.next_frame
        start = kept_from if last_received is None else last_received + 1
        if start > self.next_frame and not self.resumed:
            raise BadRequest(f"port {self.name!r}: frame {last_received} was never sent, the next is {self.next_frame}")
        if start < kept_from:
            raise Corrupt(
                f"port {self.name!r}: frames {start} to {kept_from - 1} are gone, the first kept is {kept_from}"
            )
        return start

    def begin(self, start: int, received: bool, credits: int) -> None:
        """A controller goes on at `start`. received: it said that it has all before."""
        self.cursor = start
        self.acked = max(self.acked, start if received else 0)
        self._keep = max(self._keep_always, credits)

    def keep_at_least(self, frames: int) -> None:
        self._keep = max(self._keep, frames)

    def sent_to(self, position: int) -> None:
        self.cursor = position
        self.sent = max(self.sent, position)
        self._trim()

    def ack(self, frame: int) -> None:
        if frame >= self.cursor:
            raise BadRequest(f"port {self.name!r}: frame {frame} can't be acked, only {self.cursor} frames were sent")
        self.acked = max(self.acked, frame + 1)
        self._trim()

    # ---- viewers ----

    def latest_from(self, position: int) -> int:
        """Where a viewer at `position` goes on: there, or at the newest chunk if it is more than a chunk behind."""
        if not self._slots:
            return self.next_frame
        newest = self._slots[-1]
        before = self._slots[-2] if len(self._slots) > 1 else newest
        return position if position >= before.first else newest.first

    def _trim(self) -> None:
        floor = settled = max(self.acked, self.cursor - self._keep) if self.lossless else self.next_frame
        if self.readers or not self.lossless:  # two chunks stay, so that viewers see them whatever the controller acks
            floor = min(floor, self._slots[-2].first if len(self._slots) > 1 else 0)
        while self._slots and self._slots[0].end <= min(floor, self.next_frame):
            self._slots.popleft().let_go()
        for slot in self._slots:
            if slot.end <= settled and slot.array is not None:  # it stays for viewers, and need not be made again
                slot.let_go()

    def set_lossless(self, lossless: bool) -> None:
        """Whether the controller reads this port; one it does not read goes at its own pace."""
        self.lossless = lossless
        self._trim()

    @property
    def held_frames(self) -> int:
        """Frames whose chunks are kept here, fetched or by reference."""
        return sum(slot.chunk.frames for slot in self._slots)

    @property
    def is_behind(self) -> bool:
        """Whether frames that its client has had are still to be made again."""
        return self.lossless and not self.is_cut and max(self.cursor, self.sent) > self.next_frame

    @property
    def drained(self) -> bool:
        return not self.lossless or self.cursor >= self.next_frame

    def close(self) -> None:
        """Loads nothing more; what is loaded stays readable."""
        self.is_closed = True

    def clear(self) -> None:
        """Frees all that lies here, once nobody reads it any more."""
        while self._slots:
            self._slots.popleft().let_go()
        self.lossless = False

    def check(self) -> None:
        """Counts add up: slots join without gaps up to `next_frame`, and nothing unsent was dropped."""
        ends = [s.first for s in list(self._slots)[1:]] + [self.next_frame]
        if self._slots and [s.end for s in self._slots] != ends:
            raise Corrupt(f"ring {self.name!r}: chunks do not join")
        first = self._slots[0].first if self._slots else self.next_frame
        if self.lossless and not self.resumed and not first <= self.cursor <= self.next_frame:
            raise Corrupt(f"ring {self.name!r}: cursor {self.cursor} outside of {first}..{self.next_frame}")
