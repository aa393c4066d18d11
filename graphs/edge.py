"""An interior edge: a bounded, lossless queue of chunk references in front of one input port."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from riverrun.graphs.graph import Endpoint
from riverrun.models.base import Chunk, Corrupt


class EdgeQueue:
    """Chunks on their way into one port. The head stays here until the step that took it has answered, so `capacity`
    counts it too. `ended`: the producer will send no more.

    from_client: fed by `Runner.push` rather than by a stage.
    """

    def __init__(self, target: Endpoint, capacity: int, from_client: bool = False):
        self.target = target
        self.capacity = capacity
        self.from_client = from_client
        self.ended = False
        self.taken = 0
        self._pushed = 0
        self._frames = 0
        self._queue: deque[tuple[Chunk, Callable[[], None]]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def head(self) -> Chunk | None:
        return self._queue[0][0] if self._queue else None

    @property
    def exhausted(self) -> bool:
        return self.ended and not self._queue

    def has_room(self, chunks: int) -> bool:
        return len(self._queue) + chunks <= self.capacity

    def put(self, chunk: Chunk, release: Callable[[], None]) -> None:
        """Takes a chunk, named from here on by the port it goes into. release: called when the stage has taken it."""
        self._queue.append((replace(chunk, port=self.target.port), release))

    def push(self, chunk: Chunk, epoch: int) -> None:
        """A client's chunk: numbered here, by what came before."""
        frames, self._frames = self._frames, self._frames + chunk.frames
        seq, self._pushed = self._pushed, self._pushed + 1
        self.put(replace(chunk, seq=seq, first_frame=frames, epoch=epoch), release=lambda: None)

    def pop(self) -> Chunk:
        """Forgets the head: the stage has it."""
        chunk, release = self._queue.popleft()
        self.taken += 1
        release()
        return chunk

    def clear(self) -> None:
        """Lets go of all that lies here: its session is over."""
        while self._queue:
            self._queue.popleft()[1]()

    def check(self) -> None:
        if len(self._queue) > self.capacity and not self.ended:  # a flush may put more, once
            raise Corrupt(
                f"edge into {self.target} holds {len(self._queue)} chunks, at most {self.capacity} may lie there"
            )
