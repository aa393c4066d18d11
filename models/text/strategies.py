"""What a text session may ask for, and the decoding strategy made of it."""

from __future__ import annotations

from dataclasses import dataclass

from riverrun.models.base import BadRequest
from riverrun.models.text.decoding import Autoregressive, Decoder
from riverrun.models.text.jacobi import JacobiBlocks
from riverrun.models.text.jacobi_sliding import JacobiSliding
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.wedlm import WeDLM

STRATEGIES = ("autoregressive", "jacobi", "jacobi_sliding", "wedlm")


@dataclass(frozen=True)
class TextParams:
    """What a session may ask for.

    strategy: one of STRATEGIES. All but `wedlm` write the very text that `autoregressive` would (sampled: a text of
    the same distribution). max_tokens: of one answer. temperature: 0 takes the most probable token; `jacobi`
    knows nothing else. top_k (0: all), top_p: filters of sampling.
    block: tokens of a draft. blocks, spawn, pool: see `JacobiBlocks`. window, threshold, distance: see `WeDLM`.
    """

    strategy: str = "autoregressive"
    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    block: int = 64
    blocks: int = 2
    spawn: float = 0.85
    pool: int = 4
    window: int = 16
    threshold: float | None = 0.4
    distance: float = 0.02

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise BadRequest(f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        if self.max_tokens < 1 or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise BadRequest(
                "max_tokens must be at least 1, temperature and top_k at least 0, top_p above 0 and at most 1; "
                f"got {self.max_tokens}, {self.temperature}, {self.top_k}, {self.top_p}"
            )
        if self.temperature and self.strategy == "jacobi":
            raise BadRequest(f"jacobi is greedy (jacobi_sliding samples), got a temperature of {self.temperature}")


def strategy(params: TextParams, config: LMConfig, stop_ids: frozenset[int]) -> Decoder:
    """The decoder a session asked for. Raises BadRequest if the model can't follow it, or for values out of range."""
    p = params
    match p.strategy:
        case "jacobi":
            return JacobiBlocks(p.block, p.blocks, p.spawn, p.pool, stop_ids)
        case "jacobi_sliding":
            return JacobiSliding(config.vocab_size, p.block, stop_ids, p.temperature, p.top_k, p.top_p)
        case "wedlm":
            if config.mask_token_id is None or config.mask_token_id >= config.vocab_size:
                raise BadRequest("wedlm needs a model trained for it (its config names a mask_token_id)")
            return WeDLM(
                config.mask_token_id, p.window, p.threshold, p.distance, p.temperature, p.top_k, p.top_p, stop_ids
            )
        case _:
            return Autoregressive(stop_ids, p.temperature, p.top_k, p.top_p)
