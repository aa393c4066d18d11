"""Jacobi decoding: guess a block, keep the longest prefix that the model itself would have written (jacobi_forcing.md).

Paper: arXiv 2512.14681. The text is exactly what one token at a time would give, from any model; a model trained for it
only needs fewer forwards. A block's end is fixed: its draft shrinks as tokens are accepted. While it is being settled,
blocks behind it are already guessed; and what was once predicted and thrown away is tried again where its first token
turns up. Drafts of blocks ahead and the pool live on from block to block. (The official multi-block loop means to, but
drops both at each block's end: its pitfall P3. So the text is equal to the official one's, the forwards are fewer.)

Rows drafted and not accepted leave the cache at once, so a session can follow another strategy at any forward.

L rows of the block under way, n a block's length, V vocabulary. `draft[0]` is always verified: the text's last token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from riverrun.kernels.attention import causal_mask
from riverrun.models.base import BadRequest
from riverrun.models.text.decoding import TextStream
from riverrun.models.text.packed import Rows


def matches(draft: Sequence[int], predicted: Sequence[int]) -> int:
    """Leading guesses draft[1:] that are what their predecessors' rows predicted."""
    pairs = zip(draft[1:], predicted, strict=False)
    return next((i for i, (guess, token) in enumerate(pairs) if guess != token), len(draft) - 1)


@dataclass
class BlocksWork:
    """draft: what is left of the block under way, nothing at its end; None before the first guesses.

    ahead: guesses for the blocks behind it, n each. settled: how many of the last one's, from its front, the latest
    forward left as they were. pool: predictions once made, the newest last.
    candidates: other drafts in this forward, each L long and with the same first token.
    """

    draft: list[int] | None = None
    ahead: list[list[int]] = field(default_factory=list)
    settled: int = 0
    pool: list[list[int]] = field(default_factory=list)
    candidates: list[list[int]] = field(default_factory=list)


class JacobiBlocks:
    """Lossless greedy decoding, `blocks` blocks at a time; one block and no pool is the paper's plain form (§3).

    The very first draft is drawn from the prompt; what the model makes of it in one forward is the first block's. Later
    blocks start from tokens drawn from the whole text, unless they were guessed ahead. spawn: share of the last block
    that must be settled before another is guessed behind it. pool: predictions remembered for recycling, 0 for none.
    """

    lag = 1

    def __init__(
        self,
        block: int = 64,
        blocks: int = 2,
        spawn: float = 0.85,
        pool: int = 4,
        stop_ids: frozenset[int] = frozenset(),
    ) -> None:
        if block < 2 or blocks < 1 or pool < 0 or not 0 <= spawn <= 1:
            raise BadRequest(
                f"block must be >= 2, blocks >= 1, pool >= 0, spawn in 0..1; got {block}, {blocks}, {pool}, {spawn}"
            )
        self.block, self.blocks, self.pool, self.stop_ids = block, blocks, pool, stop_ids
        self.spawn_at = math.ceil(spawn * block)

    @property
    def reach(self) -> int:
        return self.block * (self.blocks + self.pool) + 1

    def open(self) -> BlocksWork:
        return BlocksWork()

    def propose(self, stream: TextStream) -> Rows:
        work: BlocksWork = stream.work
        if work.draft is None:
            return Rows(stream.cache, stream.ids[-1:] + stream.chance.pick(stream.ids, self.block))
        if not work.draft:
            work.draft = stream.ids[-1:] + stream.chance.pick(stream.ids, self.block - 1)
        settled = work.settled if work.ahead else self.block - len(work.draft)
        if len(work.ahead) + 1 < self.blocks and settled >= self.spawn_at:
            work.ahead.append(work.draft + stream.chance.pick(stream.ids, self.block - len(work.draft)))
        work.candidates = list(self._recycled(work))
        return self._tree(stream, work)

    def _tree(self, stream: TextStream, work: BlocksWork) -> Rows:
        """Draft and blocks ahead in one line, then each candidate's tokens but the first, which all of them share."""
        line = work.draft + [token for block in work.ahead for token in block]  # type: ignore[operator]
        start, size = stream.cache.cursor, len(line)
        branches = [candidate[1:] for candidate in work.candidates]
        ids = line + [token for branch in branches for token in branch]
        if not branches:
            return Rows(stream.cache, ids)
        places = [*range(start, start + size)] + [start + 1 + i for branch in branches for i in range(len(branch))]
        mask = torch.zeros(len(ids), len(ids), dtype=torch.bool)
        mask[:, 0] = True
        at = size
        mask[:size, :size] = causal_mask(size, size)
        for branch in branches:
            own = slice(at, at + len(branch))
            mask[own, own] = causal_mask(len(branch), len(branch))
            at += len(branch)
        return Rows(stream.cache, ids, places, mask)

    def accept(self, stream: TextStream, logits: Tensor) -> None:
        work: BlocksWork = stream.work
        predicted = logits.argmax(-1).tolist()
        if work.draft is None:
            work.draft = predicted[: self.block]
            return stream.extend(work.draft[:1])
        draft, answers, known = self._best(stream, work, predicted)
        self._look_ahead(work, predicted)
        stream.extend(answers[: known + 1])
        self._remember(work, draft, answers)
        work.draft = answers[known : len(draft) - 1]
        if known == len(draft) - 1 and work.ahead:  # the block's end: the first one ahead is next
            work.draft = stream.ids[-1:] + work.ahead.pop(0)[1:]

    def _best(self, stream: TextStream, work: BlocksWork, predicted: list[int]) -> tuple[list[int], list[int], int]:
        """(draft, its predictions, right guesses) of the candidate that got furthest; its rows are put in place."""
        draft = work.draft or []
        size, branch = len(draft), len(draft) - 1
        first = size + sum(len(block) for block in work.ahead)
        tried = [(draft, predicted[:size], 0)]
        for number, candidate in enumerate(work.candidates):
            at = first + number * branch
            tried.append((candidate, [predicted[0], *predicted[at : at + branch]], at))
        known = [matches(guess, answers) for guess, answers, _ in tried]
        winner = known.index(max(known))
        guess, answers, at = tried[winner]
        if winner:
            start = stream.cache.cursor - len(predicted)
            stream.cache.adopt(start, [start, *range(start + at, start + at + known[winner])])
        return guess, answers, known[winner]

    def _look_ahead(self, work: BlocksWork, predicted: list[int]) -> None:
        """Blocks ahead take over what the line's rows predicted for their places."""
        at = len(work.draft or [])
        for number, block in enumerate(work.ahead):
            work.ahead[number] = predicted[at - 1 : at - 1 + len(block)]
            changed = (i for i, (old, new) in enumerate(zip(block, work.ahead[number], strict=True)) if old != new)
            work.settled = next(changed, len(block))
            at += len(block)

    def _remember(self, work: BlocksWork, draft: list[int], answers: list[int]) -> None:
        if self.pool:
            line = [token for block in work.ahead for token in block]
            work.pool = [*work.pool, draft[:1] + answers + line][-self.pool :]

    def _recycled(self, work: BlocksWork) -> Iterator[list[int]]:
        """Drafts that go on as some remembered prediction did, behind the first place where it had this token."""
        draft, seen = work.draft or [], [work.draft]
        for past in reversed(work.pool):
            if draft[0] not in past:
                continue
            piece = past[past.index(draft[0]) :][: len(draft)]
            candidate = piece + draft[len(piece) :]
            if candidate not in seen:
                seen.append(candidate)
                yield candidate
