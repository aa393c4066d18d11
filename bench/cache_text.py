"""The ways of language models: strategies that write, on small trained models, and reading under a budget."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import riverrun
from riverrun.bench.cache_plan import Case, Plan, Way, random_network
from riverrun.kernels.cache import KVCache
from riverrun.models.text.causal_lm import CausalLM, WholeMemory
from riverrun.models.text.decoding import Autoregressive, Decoder, TextStream, decode, text_cache
from riverrun.models.text.jacobi import JacobiBlocks
from riverrun.models.text.jacobi_sliding import JacobiSliding
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.locret import RetainingLM, Retention, read
from riverrun.models.text.packed import Rows, feed
from riverrun.models.text.sampling import SeededChance
from riverrun.models.text.wedlm import WeDLM
from riverrun.models.weights import load_strict

FIXTURES = Path(riverrun.__file__).parent / "tests" / "fixtures"


def _trained(method: str, name: str) -> CausalLM | str:
    """A small trained model of the tests, or why there is none."""
    folder = FIXTURES / method
    weights, about = folder / f"model_{name}.safetensors", folder / f"model_{name}.json"
    if not weights.is_file() or not about.is_file():
        return f"its small trained model is not in {folder}"
    model = CausalLM(LMConfig.read(json.loads(about.read_text())["config"])).eval()
    load_strict(model, {key.removeprefix("w/"): tensor for key, tensor in load_file(weights).items()})
    return model.requires_grad_(False)


def _writing(method: str, plan: Plan, model: CausalLM, decoders: dict[str, Callable[[], Decoder]]) -> Iterator[Case]:
    """Texts of several lengths from a periodic prompt, as the models were trained on; whole texts are timed."""
    prompt = ([11, 4, 27, 9, 31, 16] * 4)[:20]
    room = model.config.max_position_embeddings // 2

    def write(decoder: Callable[[], Decoder], count: int) -> Callable[[Any], int]:
        def run(_: Any) -> int:
            made = decoder()
            stream = TextStream.start(text_cache(model, 2 * room), SeededChance(0), made, prompt)
            forwards = 0
            while len(stream.generated) < count and not stream.is_ended:
                decode(model, [stream])
                forwards += 1
            return forwards

        return run

    def again(count: int) -> Callable[[Any], int]:
        def run(_: Any) -> int:
            ids = list(prompt)
            for _ in range(count):
                memory = WholeMemory(model.config.rotary, torch.arange(len(ids)))
                hidden = model.hidden(torch.tensor([ids]), memory)
                ids.append(int(model.logits(hidden[0, -1:]).argmax()))
            return count

        return run

    for count in sorted({min(8 * chunks, room) for chunks in plan.chunks}):
        held = model.config.kv_bytes(len(prompt) + count, model.dtype)
        ways = [Way(name, write(decoder, count), held=held) for name, decoder in decoders.items()]
        plain = Way("a token at a time", write(Autoregressive, count), held=held)
        yield Case(method, f"{count} tokens", (*ways, plain, Way("a token at a time, no cache", again(count))))


def jacobi(plan: Plan) -> Iterator[Case] | str:
    """Blocks ahead and a sliding draft, both lossless."""
    model = _trained("jacobi_forcing", "llama_a")
    if isinstance(model, str):
        return model
    vocab = model.config.vocab_size
    ways: dict[str, Callable[[], Decoder]] = {
        "jacobi, blocks of 16": lambda: JacobiBlocks(16, 1, pool=0),
        "jacobi, two blocks": lambda: JacobiBlocks(16, 2),
        "jacobi, sliding": lambda: JacobiSliding(vocab, 16),
    }
    return _writing("Jacobi Forcing", plan, model, ways)


def wedlm(plan: Plan) -> Iterator[Case] | str:
    """A window of 16 masks; not lossless."""
    model = _trained("wedlm", "qwen3_b")
    if isinstance(model, str):
        return model
    mask = model.config.vocab_size - 1
    return _writing("WeDLM", plan, model, {"wedlm": lambda: WeDLM(mask, 16, 1.5, temperature=0.0)})


def locret(plan: Plan) -> Iterator[Case]:
    """The next piece of a prompt, under a budget of 4 pieces or over all that was read."""
    piece, dim = 64, plan.dim
    lengths = [4 * chunks for chunks in plan.chunks]
    room = piece * (max(lengths) + 2)
    sizes = {"hidden_size": dim, "intermediate_size": 3 * dim, "num_hidden_layers": plan.depth, "vocab_size": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": room}
    model = random_network(RetainingLM(LMConfig.read({"model_type": "llama", **sizes, **heads}), width=dim))
    ids = torch.randint(0, 256, (room,), generator=torch.Generator().manual_seed(1)).tolist()
    retention = Retention(budget=4 * piece, chunk=piece, stabilisers=piece, local=1, slack=piece)

    def budgeted(stream: TextStream) -> int:
        read(model, [stream], retention)
        return 1

    def kept(cache: KVCache) -> int:
        feed(model, [Rows(cache, ids[cache.cursor : cache.cursor + piece], logits=0)])
        return 1

    for chunks in lengths:
        cache, whole = retention.cache(model, 1), text_cache(model, piece * (chunks + 1))
        stream = TextStream.start(cache, SeededChance(0), Autoregressive(), ids)
        with torch.no_grad():
            for _ in range(chunks):
                budgeted(stream)
                kept(whole)
        ways = (
            Way("retaining heads", budgeted, partial(copy.deepcopy, stream), cache.nbytes),
            Way("everything kept", kept, partial(copy.deepcopy, whole), whole.nbytes),
        )
        yield Case("Locret", f"{piece * chunks} tokens", ways)
