"""What the cache benchmark counts and shows, on the smallest networks; times are whatever they are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from riverrun.bench import cache, cache_text
from riverrun.bench.cache_plan import Plan, Way
from riverrun.kernels.attention import attention
from riverrun.models.generation.ca2vdm_flops import clip_call, denoise_call, write_call
from riverrun.models.generation.ca2vdm_net import STDiTConfig

TINY = Plan(repeats=1, width=1, depth=1, steps=2, chunks=(1, 6))


def figures(method: str) -> dict[tuple[str, str], cache.Figure]:
    """By (length of stream, way)."""
    torch.set_num_threads(1)
    cases = cache.METHODS[method](TINY)
    assert not isinstance(cases, str)
    return {(f.at, f.way): f for case in cases for f in cache.measure(case, TINY.repeats)}


@pytest.mark.parametrize("method", cache.METHODS)
def test_every_method_is_measured_at_two_lengths(method: str) -> None:
    found = figures(method)
    assert len({at for at, _ in found}) == 2
    assert all(f.ms > 0 and f.flops > 0 and f.passes > 0 for f in found.values())
    lines = cache.show(list(found.values())).splitlines()
    assert len(lines) == 2 + len(found)
    assert sum("1.00 x" in line for line in lines) >= 2
    assert len({line.count("|") for line in lines}) == 1


def test_attention_is_counted() -> None:
    q, k = torch.zeros(2, 5, 3, 8), torch.zeros(2, 7, 3, 8)
    with torch.no_grad():
        assert cache.counted(Way("one", lambda _: attention(q, k, k).ndim - 3)) == (4 * 2 * 3 * 5 * 7 * 8, 1)


def test_flops_are_those_of_the_formula() -> None:
    """Of a network without prefix attention exactly; with it, our write pass does less than the official one."""
    found = figures("ca2vdm")
    config = STDiTConfig((16, 16), hidden_size=32, depth=1, num_heads=2, table_len=57)
    extendable = dataclasses.replace(config, causality="full", prefix_frames=0, mask_channel=False)
    for at, before in (("9 frames", 9), ("49 frames", 41)):
        again = found[at, "both directions, no cache"].flops
        assert again == 2 * clip_call(extendable, before, 8).total
        denoising, write = 2 * denoise_call(config, before, 8).total, write_call(config, before, 8).total
        assert denoising < found[at, "cache"].flops < denoising + write


def test_a_caches_cost_does_not_grow() -> None:
    found = figures("longlive")
    assert found["18 frames", "cache"].flops < 2 * found["3 frames", "cache"].flops
    found = figures("infinitevggt")
    bounded, unbounded = (found["48 frames", way] for way in ("bounded cache", "concatenated, unbounded"))
    assert bounded.flops < unbounded.flops
    assert bounded.held < unbounded.held


def test_a_condition_costs_one_pass_and_not_one_a_step() -> None:
    found = figures("easycontrol")
    for count, at in ((1, "1 condition"), (2, "2 conditions")):
        kept, again, none = (found[at, way] for way in ("condition cache", "conditions at each step", "no conditions"))
        assert (kept.passes, again.passes, none.passes) == (2 + count, 2 + 2 * count, 2)
        assert none.flops < kept.flops < again.flops


def test_drafts_take_fewer_passes() -> None:
    found = figures("jacobi")
    assert found["48 tokens", "jacobi, blocks of 16"].passes < found["48 tokens", "a token at a time"].passes == 48


def test_the_papers_flop_ratio() -> None:
    """As counted on the official network."""
    counted = json.loads((cache_text.FIXTURES / "ca2vdm" / "ca2_flops_reference.json").read_text())
    totals = counted["80_frames_100_steps_Pmax41_PFLOP"]
    for prefix_frames, name in ((0, "noPE"), (3, "PE")):
        assert cache.released_ratio(prefix_frames) == pytest.approx(totals[f"ratio_ext_over_ca2_{name}"], rel=1e-9)


def test_without_trained_models_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_text, "FIXTURES", tmp_path)
    monkeypatch.setattr(cache, "QUICK", TINY)
    target = tmp_path / "cache.json"
    assert cache.main(["--quick", "--method", "wedlm", "--method", "infvsr", "--json", str(target)]) == 0
    shown = capsys.readouterr().out
    assert "wedlm: not measured, its small trained model is not in" in shown
    assert "| InfVSR" in shown
    document = json.loads(target.read_text())
    assert {row["method"] for row in document["figures"]["ways"]} == {"InfVSR"}
    assert document["settings"]["chunks"] == [1, 6]
