"""Jacobi decoding by a draft of constant length that slides over the text; greedy or sampled (jacobi_forcing.md §5).

Lossless, as `jacobi.py`: greedy it writes the very text of plain decoding, sampled a text of exactly its distribution.

L tokens of a draft, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riverrun.models.base import BadRequest
from riverrun.models.text.decoding import TextStream
from riverrun.models.text.jacobi import matches
from riverrun.models.text.packed import Rows
from riverrun.models.text.sampling import filtered

REDRAWS = 16
"""How often a token other than a refused one is drawn before the most probable other one is taken."""


@dataclass
class SlidingWork:
    """guesses: for the tokens after the text's last; None before the first."""

    guesses: list[int] | None = None


class JacobiSliding:
    """A forward commits what was guessed right, or one token if nothing was. The token after the last right guess is
    known too, but opens the next draft instead (the official rule; it is accepted there for sure).
    temperature: 0 is greedy. top_k, top_p: as in `sampling.filtered`, after the temperature.
    """

    lag = 1

    def __init__(
        self,
        vocab: int,
        block: int = 64,
        stop_ids: frozenset[int] = frozenset(),
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> None:
        if block < 2:
            raise BadRequest(f"block must be at least 2 tokens, got {block}")
        self.vocab, self.block, self.stop_ids = vocab, block, stop_ids
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    @property
    def reach(self) -> int:
        return self.block + 1

    def open(self) -> SlidingWork:
        return SlidingWork()

    def propose(self, stream: TextStream) -> Rows:
        if stream.work.guesses is None and self.temperature == 0:  # the first forward only makes guesses
            return Rows(stream.cache, stream.ids[-1:] + stream.chance.pick(stream.ids, self.block))
        guesses = stream.work.guesses or []
        stream.work.guesses = guesses + stream.chance.pick(range(self.vocab), self.block - 1 - len(guesses))
        return Rows(stream.cache, stream.ids[-1:] + stream.work.guesses)

    def accept(self, stream: TextStream, logits: Tensor) -> None:
        work: SlidingWork = stream.work
        if work.guesses is None:
            work.guesses = logits.argmax(-1).tolist()[: self.block - 1]
            return
        draft, rows = stream.ids[-1:] + work.guesses, logits[:-1]  # the last row verifies nothing
        predicted = rows.argmax(-1).tolist()
        tokens = (
            self._drawn(stream, draft, rows) if self.temperature else predicted[: max(matches(draft, predicted), 1)]
        )
        stream.extend(tokens)
        # If every guess was right the last prediction opens the draft again, a duplicate: the official rule.
        work.guesses = predicted[min(len(tokens), len(predicted) - (self.temperature == 0)) :]

    def _drawn(self, stream: TextStream, draft: list[int], rows: Tensor) -> list[int]:
        """Lossless for p = softmax(rows / temperature), filtered: each guess is kept with its own probability; the
        first that isn't is replaced by a draw from p without it, which ends the sweep."""
        shares = torch.softmax(filtered(rows / self.temperature, self.top_k, self.top_p), -1)  # (L - 1, V)
        tokens: list[int] = []
        for guess, share in zip(draft[1:], shares, strict=True):
            if stream.chance.uniform() < float(share[guess]):
                tokens.append(guess)
                continue
            return [*tokens, _other(stream, share, guess)]
        return tokens


def _other(stream: TextStream, share: Tensor, refused: int) -> int:
    for _ in range(REDRAWS):
        token = stream.chance.sample(share)
        if token != refused:
            return token
    rest = share.clone()
    rest[refused] = -1
    return int(rest.argmax())
