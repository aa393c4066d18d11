"""An edge: a bounded, lossless log of chunk references in front of one input port.

    0 ........ base ............ taken ............ end
      forgotten |  kept for replay |  on their way  |

A chunk is forgotten when the stage behind it has it in two checkpoints (`commit`). When that stage has to begin again
at an earlier one, the edge goes back with it (`rewind`); when the one before does, its chunks come a second time and
take the place of those lost with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

from riverrun.graphs.graph import Endpoint
from riverrun.models.base import Chunk, Corrupt


@dataclass
class _Slot:
    """A place in the log. chunk: None until it is made again. release: says that nobody here needs it any more."""

    chunk: Chunk | None = None
    release: Callable[[], None] | None = None


class EdgeQueue:
    """Chunks on their way into one port; `capacity` counts those not yet taken, the one being worked on included.

    from_client: fed by `Runner.push` rather than by a stage. once: one chunk is all the stage takes. ended: the
    producer will send no more. refused: chunks that the stage did not take.
    """

    def __init__(self, target: Endpoint, capacity: int, from_client: bool = False, once: bool = False):
        self.target = target
        self.capacity = capacity
        self.from_client = from_client
        self.once = once
        self.ended = False
        self.refused = 0
        self.base = self.taken = 0
        self.base_frame = self.taken_frames = 0
        self._furthest = 0
        self._found = 0
        self._pushed = 0
        self._frames = 0
        self._slots: deque[_Slot] = deque()

    def __len__(self) -> int:
        """Chunks on their way: neither taken nor still to come again."""
        return max(0, self.end - self.taken)

    @property
    def end(self) -> int:
        """The number of the next new chunk."""
        return self.base + len(self._slots)

    @property
    def head(self) -> Chunk | None:
        """The chunk to be taken next, if it is here."""
        place = self.taken - self.base
        return self._slots[place].chunk if 0 <= place < len(self._slots) else None

    @property
    def is_repeating(self) -> bool:
        """Whether the head was taken before."""
        return self.taken < self._furthest

    @property
    def held(self) -> int:
        """Chunks that somebody keeps for this edge."""
        return sum(1 for slot in self._slots if slot.release)

    @property
    def due_frame(self) -> int:
        """Number of the frame that a client has to push next."""
        return self._frames

    @property
    def frames_with_head(self) -> int:
        """Frames taken when the head is."""
        head = self.head
        return head.first_frame + head.frames if head else self.taken_frames

    @property
    def exhausted(self) -> bool:
        return self.spent or (self.ended and self.taken >= self.end)

    @property
    def spent(self) -> bool:
        """Whether its stage has the one chunk it takes."""
        return self.once and self.taken > self.refused

    @property
    def has_gap(self) -> bool:
        """Whether a chunk that the stage must be given is known to have been made, and is not here."""
        return any(slot.chunk is None for slot in islice(self._slots, max(0, self.taken - self.base), None))

    @property
    def waiting_frames(self) -> int:
        """Frames here that are in no checkpoint of the stage."""
        return sum(slot.chunk.frames for slot in self._slots if slot.chunk)

    def has_room(self, chunks: int, first: int) -> bool:
        """Whether so many may come, of which the first has this number: those that were here before take no place."""
        new = first + chunks - self.end
        return new <= 0 or len(self) + min(new, chunks) <= self.capacity

    def begin_at(self, base: int, base_frame: int, taken: int, taken_frames: int) -> None:
        """The log of a session that others have run before: `base` is the first chunk that may be needed again,
        `base_frame` the number of its first frame; `taken` chunks of `taken_frames` frames have been taken."""
        self.base = base
        self.taken = self._furthest = max(base, taken)
        self._pushed, self._frames = base, base_frame
        self.base_frame, self.taken_frames = base_frame, taken_frames
        self._slots = deque(_Slot() for _ in range(self.taken - base))

    def found(self) -> None:
        """All that lies here was made for others: that may be more than would be let in now."""
        self._found = self.end

    def put(self, chunk: Chunk, release: Callable[[], None] | None = None) -> bool:
        """Takes a chunk, named from here on by the port it goes into; whether it is new here.

        release: called when it is forgotten, if it was new. One that comes again only takes the place of its first.
        """
        place = chunk.seq - self.base
        if place < 0:
            return False
        if place > len(self._slots):
            raise Corrupt(f"edge into {self.target}: chunk {chunk.seq} came where {self.end} was due")
        if place == len(self._slots):
            self._slots.append(_Slot())
        slot = self._slots[place]
        slot.chunk = replace(chunk, port=self.target.port)
        if slot.release:
            return False
        slot.release = release or _nothing
        return True

    def push(self, chunk: Chunk, epoch: int) -> None:
        """A client's chunk: numbered here, by what came before."""
        frames, self._frames = self._frames, self._frames + chunk.frames
        seq, self._pushed = self._pushed, self._pushed + 1
        self.put(replace(chunk, seq=seq, first_frame=frames, epoch=epoch))

    @property
    def takes_push(self) -> bool:
        """Whether a client's chunk may come: there is room, or it is one that the stage has had before."""
        return self.has_room(1, self._pushed)

    def pop(self) -> Chunk:
        """The stage has the head."""
        chunk = self.head
        if chunk is None:
            raise Corrupt(f"edge into {self.target}: chunk {self.taken} is not here")
        self.taken += 1
        self.taken_frames = chunk.first_frame + chunk.frames
        self._furthest = max(self._furthest, self.taken)
        return chunk

    def lose(self, chunk: Chunk) -> bool:
        """What this head refers to is gone: it is waited for until it comes again. False if it has come already."""
        if self.head is not chunk:
            return False
        self._slots[self.taken - self.base].chunk = None
        return True

    def commit(self, count: int, frames: int) -> None:
        """The first `count` chunks are never needed again. frames: how many they had, for those that are not here."""
        while self.base < min(count, self.taken):
            slot = self._slots.popleft()
            self.base += 1
            if slot.chunk:
                self.base_frame = slot.chunk.first_frame + slot.chunk.frames
            if slot.release:
                slot.release()
            if self.base == count:
                self.base_frame = max(self.base_frame, frames)

    def rewind(self, taken: int, frames: int) -> None:
        """The stage begins again where it had taken so many chunks, of so many frames. Raises Corrupt if later ones are
        forgotten."""
        if taken < self.base:
            raise Corrupt(f"edge into {self.target}: chunks {taken} to {self.base - 1} are gone")
        while self.end < taken:
            self._slots.append(_Slot())
        self.taken, self.taken_frames = taken, frames

    def clear(self) -> None:
        """Lets go of all that lies here: its session is over. The counts stay, for its record."""
        slots, self._slots = self._slots, deque()
        for slot in slots:
            if slot.release:
                slot.release()

    def check(self) -> None:
        """Raises Corrupt where counts don't add up."""
        new = self.end - max(self._furthest, self._found)
        if new > self.capacity and not self.ended:  # a flush may put more, once
            raise Corrupt(f"edge into {self.target} holds {new} chunks, at most {self.capacity} may lie there")
        if self.taken < self.base:
            raise Corrupt(f"edge into {self.target}: {self.taken} taken, {self.base} forgotten")


def _nothing() -> None:
    """Nobody waits for it."""
