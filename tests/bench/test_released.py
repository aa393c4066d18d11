"""Every method at released size: what the table says is what the models themselves predict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import riverrun
from riverrun.bench import realsize, released
from riverrun.models.generation.ca2vdm import SKY_TIMELAPSE
from riverrun.models.generation.ca2vdm_sizes import clip_session
from riverrun.models.generation.vidgpt import XL_2_TEXT
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.locret import RetainingLM, Retention
from riverrun.models.wan.sizes import human


@pytest.fixture(scope="module")
def found() -> dict[str, released.Released]:
    return released.all_released()


def test_names_and_values_are_the_released_ones(found: dict[str, released.Released]) -> None:
    """Those the specifications give, or the sums of theirs."""
    assert {name: one.tensors for name, one in found.items()} == {
        "LongLive": 825 + 194,
        "Ca2-VDM": 492,
        "ViD-GPT": 665,
        "EasyControl": 1160 + 244 + 380,
        "InfVSR": 825 + 194 + 329,
        "InfiniteVGGT": 1797,
        "Jacobi Forcing": 339,
        "WeDLM": 399,
        "Locret": 291 + 64,
    }
    assert found["Jacobi Forcing"].values == 7_615_616_512
    assert found["WeDLM"].values == 8_190_735_360
    assert found["Locret"].values == 8_030_261_248 + 201_588_736


def test_bytes_are_those_the_models_predict(found: dict[str, released.Released]) -> None:
    assert found["Ca2-VDM"].parts == clip_session(SKY_TIMELAPSE, 2, 33)
    assert found["ViD-GPT"].parts == clip_session(XL_2_TEXT, 2, 65)
    sizes = LMConfig.read({**released.LM_SIZES["Llama-3.1-8B"], "max_position_embeddings": 131072})
    with torch.device("meta"):
        model = RetainingLM(sizes).to(torch.bfloat16)
    retention = Retention(budget=16384, chunk=1024)
    predicted = retention.session_bytes(model, reach=1)
    assert found["Locret"].total == predicted - 8 * retention.capacity(1), "the ids aside"


def test_the_page_of_models_has_these_numbers(found: dict[str, released.Released]) -> None:
    page = (Path(riverrun.__file__).parent / "docs" / "models.md").read_text()
    for name, one in found.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {one.tensors:,} | {one.values / 1e9:.2f} B |" in row
        assert f"| {human(one.total)} |" in row


def test_meta_shows_a_row_a_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert realsize.main(["--meta", "--json", str(tmp_path / "meta.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(released.METHODS)
    assert "5.45 GB" in next(line for line in lines if line.startswith("| LongLive"))
    assert set(json.loads((tmp_path / "meta.json").read_text())["figures"]) == set(released.METHODS)
