"""The checkpoints of one stage: when the next is due, from which it can go on, and which may be deleted.

All of it decisions over numbers, by three rules:

1. A stage can begin again at a checkpoint only if no reply before it is still wanted (`acked`): everybody who takes its
   outputs has them in checkpoints of their own, or is a client that said so.
2. `COPIES` of those are kept, so that a damaged blob costs a longer replay and not the stream.
3. What lies before the oldest one kept - inputs on the edges, controls, decisions - is forgotten, and no sooner.

Step 0 counts as a checkpoint without a blob: a State opened again from its parameters and seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from riverrun.store.checkpoints import Manifest, Mark

COPIES = 2


@dataclass(frozen=True)
class Cadence:
    """When a stage takes a checkpoint. chunks: steps since the last one; 0: never. seconds: since the last one, if a
    step was made. inputs: frames from clients that are in no checkpoint (they keep those until they are).
    kind: "exact", or "recache" where the model knows how to."""

    chunks: int = 8
    seconds: float = 10.0
    inputs: int = 16
    kind: str = "exact"

    def is_due(self, steps: int, seconds: float, inputs: int) -> bool:
        """Whether the step about to be made, the `steps`-th since the last checkpoint, should be followed by one."""
        return bool(self.chunks) and (steps >= self.chunks or seconds >= self.seconds or inputs >= self.inputs)


class CheckpointBook:
    """manifests: those there are already, of a session that others have run before."""

    def __init__(self, manifests: Iterable[Manifest] = ()):
        self._kept = sorted(manifests, key=lambda m: m.order)

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """Oldest first."""
        return tuple(self._kept)

    def add(self, manifest: Manifest) -> None:
        self._kept = sorted([*self._kept, manifest], key=lambda m: m.order)

    def drop(self, manifest: Manifest) -> None:
        """It is damaged."""
        self._kept = [each for each in self._kept if each.path != manifest.path]

    def usable(self, acked: float) -> list[Manifest]:
        """From which the stage can begin again, newest first. acked: replies up to this step are wanted by nobody."""
        return [m for m in reversed(self._kept) if m.mark.seq <= acked + 1]

    def outdated(self, acked: int) -> list[Manifest]:
        """Those that no replay needs any more."""
        return self.usable(acked)[COPIES:]

    def floor(self, acked: float) -> Mark:
        """What lies before this mark may be forgotten: the stage will never begin again earlier."""
        usable = [m.mark for m in self.usable(acked)[:COPIES]]  # one of a later epoch may be of an earlier step
        return min(usable, key=lambda mark: mark.seq) if len(usable) >= COPIES else Mark()
