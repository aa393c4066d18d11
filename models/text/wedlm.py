"""WeDLM: a window of masks behind the text, filled in any order and committed from the left (wedlm.md).

Paper: arXiv 2512.22737. The model was trained so that a mask at position p predicts the token at p, under plain causal
attention. In each forward the window's filled tokens are fed in front of its masks, every row at its own position, so
each mask sees all that is filled, also what lies behind it. What is filled from the left on is text; its rows saw text
only, so their keys are those of a plain causal pass and stay. Not lossless: the text depends on the thresholds.

W window, V vocabulary, n masks of the window.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from riverrun.models.base import BadRequest
from riverrun.models.text.causal_lm import CausalLM, WholeMemory
from riverrun.models.text.decoding import TextStream
from riverrun.models.text.packed import Rows
from riverrun.models.text.sampling import entropy, filtered


def choose(uncertainty: Tensor, threshold: float | None) -> list[int]:
    """Which masks to fill: all whose uncertainty [n] is below the threshold, else the surest (the first of equals)."""
    below = [] if threshold is None else (uncertainty < threshold).nonzero().flatten().tolist()
    return below or [int(uncertainty.argmin())]


def uncertainty(logits: Tensor, places: list[int], distance: float) -> Tensor:
    """Entropy of logits [n, V] in nats, before temperature and filters, and `distance` for each place further right."""
    offsets = torch.tensor(places, dtype=torch.float32, device=logits.device) - places[0]
    return entropy(logits) + distance * offsets


def filled_first(window: list[int | None]) -> list[int]:
    """The window's places in the order they are fed: the filled ones, then the masks."""
    return sorted(range(len(window)), key=lambda place: window[place] is None)  # stable: each kind ascending


@dataclass
class WindowWork:
    """window: tokens for the places behind the text, None where a mask still stands."""

    window: list[int | None] = field(default_factory=list)


class WeDLM:
    """mask_id: the checkpoint's mask token. window: masks in flight; a forward may hold twice as many rows.

    threshold: fill every mask less uncertain than this (nats); None fills one a forward. distance: uncertainty added
    for each place away from the first mask. temperature 0 takes the most probable token; else one is drawn, filtered
    by top_k and top_p before the temperature acts (the official order).
    """

    lag = 0

    def __init__(
        self,
        mask_id: int,
        window: int = 16,
        threshold: float | None = 0.4,
        distance: float = 0.02,
        temperature: float = 0.2,
        top_k: int = 0,
        top_p: float = 1.0,
        stop_ids: frozenset[int] = frozenset(),
    ) -> None:
        if window < 1:
            raise BadRequest(f"window must be at least 1 token, got {window}")
        self.mask_id, self.window, self.stop_ids = mask_id, window, stop_ids
        self.threshold, self.distance = threshold, distance
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    @property
    def reach(self) -> int:
        return 2 * self.window

    def open(self) -> WindowWork:
        return WindowWork([None] * self.window)

    def propose(self, stream: TextStream) -> Rows:
        window: list[int | None] = stream.work.window
        window += [None] * _prefix(window)  # before the forward, so that W masks are always in flight
        order, start = filled_first(window), stream.cache.cursor
        ids = [self.mask_id if (token := window[place]) is None else token for place in order]
        return Rows(stream.cache, ids, [start + place for place in order], logits=window.count(None))

    def accept(self, stream: TextStream, logits: Tensor) -> None:
        window: list[int | None] = stream.work.window
        done = window[: _prefix(window)]
        stream.extend([token for token in done if token is not None])
        if stream.is_ended:
            return
        del window[: len(done)]
        places = [place for place, token in enumerate(window) if token is None]
        chosen = choose(uncertainty(logits, places, self.distance), self.threshold)
        for row, token in zip(chosen, self._tokens(stream, logits[chosen]), strict=True):
            window[places[row]] = token

    def _tokens(self, stream: TextStream, logits: Tensor) -> list[int]:
        """A token for each of logits [n, V]; never the mask itself."""
        logits = logits.index_fill(1, torch.tensor(self.mask_id, device=logits.device), -torch.inf)
        if self.temperature == 0:
            return logits.argmax(-1).tolist()
        shares = torch.softmax(filtered(logits, self.top_k, self.top_p) / self.temperature, -1)
        return [stream.chance.sample(row) for row in shares]


def _prefix(window: list[int | None]) -> int:
    """Tokens filled from the left on."""
    return next((place for place, token in enumerate(window) if token is None), len(window))


@torch.no_grad()
def generate_blocks(
    model: CausalLM,
    prompt: list[int],
    new: int,
    *,
    mask_id: int,
    block: int,
    confidence: float,
    temperature: float = 1.0,
) -> tuple[list[int], list[int]]:
    """The official reference decoder: block by block, whole passes without a cache (wedlm.md §5); for inspection.

    Fills all masks whose best token has at least `confidence`, or the surest one; 0 fills one a pass. Returns
    (prompt and `new` tokens, tokens filled by each pass).
    """
    ids, steps = list(prompt), []
    while (left := len(prompt) + new - len(ids)) > 0:
        ids += [mask_id] * min(block, left)
        masks = [token == mask_id for token in ids]
        while any(masks):
            places, logits = _whole_pass(model, ids, masks)
            best, tokens = torch.softmax(logits / temperature, -1).max(-1)
            sure = [i for i, share in enumerate(best.tolist()) if share >= confidence] if confidence > 0 else []
            for i in sure or [int(best.argmax())]:
                ids[places[i]], masks[places[i]] = int(tokens[i]), False
            steps.append(len(sure) or 1)
    return ids, steps


def _whole_pass(model: CausalLM, ids: list[int], masks: list[bool]) -> tuple[list[int], Tensor]:
    """(places of the masks, their logits [n, V]) of one pass with the masks behind all other tokens."""
    order = sorted(range(len(ids)), key=lambda place: masks[place])
    positions = torch.tensor(order, device=model.device)
    rows = torch.tensor(ids, device=model.device)[positions][None]
    hidden = model.hidden(rows, WholeMemory(model.config.rotary, positions))
    count = sum(masks)
    return order[len(order) - count :], model.logits(hidden[0, len(order) - count :])
