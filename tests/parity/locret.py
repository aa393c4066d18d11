"""Replays of Locret's reading under a budget and of its training step (locret.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from riverrun.kernels.retain import ScoredCache
from riverrun.models.text.decoding import Autoregressive, TextStream, decode
from riverrun.models.text.jacobi import JacobiBlocks
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.locret import RetainingLM, Retention, read_all
from riverrun.models.text.locret_training import (
    CLIP,
    head_optimizer,
    importance_labels,
    overlap,
    train_step,
)
from riverrun.models.text.packed import Rows, feed
from riverrun.models.text.sampling import SeededChance
from riverrun.models.weights import load_strict
from riverrun.tests.parity.cases import Case


def retaining_model(case: Case) -> RetainingLM:
    weights = case.tensors("w/")
    fused = any("qkv_proj" in name for name in weights)
    family = case.meta["config"].get("model_type") or ("phi3" if fused else "llama")
    width = len(weights["model.layers.0.self_attn.fc1.weight"])
    model = RetainingLM(LMConfig.read(case.meta["config"], family), width).eval()
    load_strict(model, weights)
    return model


def retention(call: Mapping[str, Any]) -> Retention:
    local, new = call["local_len"], call["max_new_tokens"]
    sizes = {name: call[key] for name, key in (("budget", "budget_size"), ("chunk", "chunk_size"))}
    return Retention(**sizes, stabilisers=call["stabilizers"], local=local, slack=local + new)


def generate(case: Case) -> None:
    call = case.meta["call"]
    ids = case["in/input_ids"][0].tolist()
    model, limits = retaining_model(case), retention(call)
    cache = limits.cache(model, reach=1)
    stream = TextStream.start(cache, SeededChance(0), Autoregressive(), ids)
    number, seen = 0, torch.empty(0)
    while (piece := limits.next_piece(stream)) is not None and piece.prunes:
        seen = compare_chunk(case, model, stream, number, seen)
        number += 1
    assert number == len(case.meta["steps"])
    local = feed(model, [Rows(cache, ids[-call["local_len"] :])])[0]
    case.close(local, "out/local/logits")
    for layer in range(cache.spec.layers):
        case.close_if_there(cache.held(layer)[-len(local) :], f"out/local/layer{layer}/scores")
    generated = [int(local[-1].argmax())]
    has_decoding = "out/decode/logits" in case
    for row in case["out/decode/logits"] if has_decoding else ():
        logits = feed(model, [Rows(cache, generated[-1:])])[0][0]
        torch.testing.assert_close(
            logits, row, atol=case.meta["tolerance"]["atol"], rtol=case.meta["tolerance"]["rtol"]
        )
        generated.append(int(logits.argmax()))
    if generated[-1] == call["eos_token_id"] and len(generated) > 1:
        generated.pop()  # officially the token that ends a text is no part of it
    assert ids + generated == case["out/output_ids"][0].tolist()
    for layer in range(cache.spec.layers):
        compare_rows(case, cache, layer, f"out/final/layer{layer}/cache_", "")
    for decoder in (Autoregressive(), JacobiBlocks(4, 1, pool=0)):
        assert written(model, limits, decoder, ids, len(generated)) == generated


def compare_chunk(case: Case, model: RetainingLM, stream: TextStream, number: int, seen: torch.Tensor) -> torch.Tensor:
    """One chunk of the prompt. seen: positions held, [layers, heads, n]; returns those held after it."""
    cache, step = stream.cache, case.meta["steps"][number]
    assert isinstance(cache, ScoredCache)
    assert (cache.cursor, cache.lengths[0]) == (step["begin"], step["cache_len_in"])
    limits = retention(case.meta["call"])
    piece = limits.next_piece(stream)
    assert piece is not None
    assert (piece.count, piece.is_final) == (step["new_tokens"], not step["protected"])
    (logits,) = feed(model, [Rows(cache, stream.ids[step["begin"] : step["end"]], logits=1)])
    layers = range(cache.spec.layers)
    name = f"out/chunk{number}"
    case.close(logits[0], f"{name}/logits_last")
    for layer in layers:
        case.close(cache.held(layer)[step["cache_len_in"] :], f"{name}/layer{layer}/new_scores")
    kept = torch.stack(cache.prune(piece.is_final))  # (layers, heads, S)
    new = torch.arange(step["begin"], step["end"]).expand(*kept.shape[:2], -1)
    seen = torch.cat([seen, new], dim=-1) if number else new
    seen = seen.gather(-1, kept)
    for layer in layers:
        assert torch.equal(kept[layer], case[f"{name}/layer{layer}/kept_slots"].long())
        assert torch.equal(seen[layer], case[f"{name}/layer{layer}/kept_positions"].long())
        compare_rows(case, cache, layer, f"{name}/layer{layer}/cache_", "_after")
    return seen


def compare_rows(case: Case, cache: ScoredCache, layer: int, before: str, after: str) -> None:
    for part in ("k", "v"):
        rows = cache.slots(part, layer)[0, : cache.lengths[layer]]  # (n, K, D)
        case.close(rows.transpose(0, 1), f"{before}{part}{after}")


def written(model: RetainingLM, limits: Retention, decoder: Any, ids: list[int], count: int) -> list[int]:
    """The same through the product's own loop, with any decoder."""
    stream = TextStream.start(limits.cache(model, decoder.reach), SeededChance(1), decoder, ids)
    read_all(model, [stream], limits)
    while len(stream.generated) < count:
        decode(model, [stream])
    return stream.generated[:count]


def train(case: Case) -> None:
    meta = case.meta
    model = retaining_model(case)
    ids = case["in/input_ids"][0]
    prefix = int((case["in/loss_mask"][0] == 0).sum())
    assert prefix == meta["prefix_len"]
    assert torch.equal(ids[:prefix], case["out/train_input_ids"])
    labels = importance_labels(model, ids, prefix, meta["label_chunk_size"], turns_keys=not model.config.fused)
    case.close(labels, "out/labels")
    watched = Gradients(head_optimizer(model))
    learned = min(prefix, meta["max_len"])
    with torch.enable_grad():
        scores = model.scores(ids[None, :learned])
        for layer, own in enumerate(scores):
            case.close(own[0], f"out/layer{layer}/scores")
        assert abs(overlap(scores, labels[..., :learned]) - meta["top10pct_overlap"]) < 1e-6
        loss = train_step(model, watched, ids[:prefix], labels, meta["max_len"])
    for name, value in (("regression", loss.regression), ("smooth", loss.smooth), ("total", loss.total)):
        case.close(value, f"out/loss_{name}")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {f"out/grad/{name}" for name in named} == {name for name in case.names() if name.startswith("out/grad/")}
    for name, parameter in named.items():
        expected = case[f"out/grad/{name}"].clamp(-CLIP, CLIP)  # ours are clipped already
        torch.testing.assert_close(watched.seen[id(parameter)], expected, **tolerance(case))
        case.close(parameter, f"out/after_step/{name}")


def tolerance(case: Case) -> dict[str, float]:
    return {name: case.meta["tolerance"][name] for name in ("atol", "rtol")}


class Gradients(torch.optim.Optimizer):
    """Steps another optimiser, and remembers the gradients it was given."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups = inner, inner.param_groups
        self.seen: dict[int, torch.Tensor] = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.seen = {id(p): p.grad.clone() for group in self.param_groups for p in group["params"]}
        self.inner.step()


REPLAYS = {("locret", "generate"): generate, ("locret", "train"): train}
