"""Prompts: cleaning, tokens with padding and the end token, zeroed rows, both weight forms, wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from riverrun.models.base import BadRequest
from riverrun.models.key_forms import umt5_keys
from riverrun.models.text.umt5 import UMT5Encoder, clean, load_umt5

FIXTURE = Path(__file__).parents[2] / "fixtures" / "wan" / "wan_umt5.safetensors"
WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "box"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    original = {name[2:]: t for name, t in load_file(FIXTURE).items() if name.startswith("w/")}
    save_file(original, folder / "original.safetensors")
    save_file(umt5_keys(original), folder / "transformers.safetensors")
    torch.save({"model": original}, folder / "original.pth")
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> UMT5Encoder:
    return UMT5Encoder(folder / "original.safetensors", folder / "tokenizer.json", text_len=8)


def test_cleaning() -> None:
    assert clean("  a \t&amp;amp;\n red   box ") == "a & red box"
    assert clean("itâ€™s") == "it's"


def test_tokens_end_are_padded_and_cut(encoder: UMT5Encoder) -> None:
    ids, mask = encoder.tokenize(["a red box", "red " * 20])
    assert ids.tolist() == [[3, 4, 5, 1, 0, 0, 0, 0], [4, 4, 4, 4, 4, 4, 4, 1]]
    assert mask.sum(dim=1).tolist() == [4, 8]


def test_rows_past_the_prompt_are_zero(encoder: UMT5Encoder) -> None:
    rows = encoder.encode(["a red box", "red"])
    assert rows.shape == (2, 8, 32)
    assert rows.dtype == np.float32
    assert rows[0, :4].any(axis=1).all()
    assert not rows[0, 4:].any()
    assert not rows[1, 2:].any()


def test_a_prompt_does_not_depend_on_its_neighbours(encoder: UMT5Encoder) -> None:
    together = encoder.encode(["a red box", "red"])
    np.testing.assert_allclose(together[1], encoder.encode(["red"])[0], atol=1e-5)


@pytest.mark.parametrize("name", ["transformers.safetensors", "original.pth"])
def test_every_form_of_the_weights_is_the_same_encoder(encoder: UMT5Encoder, folder: Path, name: str) -> None:
    other = UMT5Encoder(folder / name, folder, text_len=8)
    assert np.array_equal(other.encode(["a red box"]), encoder.encode(["a red box"]))


def test_half_precision_and_one_embedding(folder: Path) -> None:
    half = UMT5Encoder(folder / "original.safetensors", folder, text_len=8, dtype="bfloat16")
    assert half.encoder.shared.weight is half.encoder.encoder.embed_tokens.weight
    rows = half.encode(["a red box"])
    assert rows.dtype == np.float32
    exact = UMT5Encoder(folder / "original.safetensors", folder, text_len=8).encode(["a red box"])
    assert np.abs(rows - exact).max() < 0.1


def test_what_shapes_do_not_show_is_stated(encoder: UMT5Encoder, folder: Path, tmp_path: Path) -> None:
    stated = {"model_type": "umt5", "relative_attention_max_distance": 20, "d_model": 32}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    other = UMT5Encoder(folder / "original.safetensors", folder, config=tmp_path / "config.json", text_len=32)
    assert other.encoder.config.relative_attention_max_distance == 20
    assert encoder.encoder.config.relative_attention_max_distance == 128
    assert not np.allclose(
        other.encode(["red " * 30]),
        UMT5Encoder(folder / "original.safetensors", folder, text_len=32).encode(["red " * 30]),
    )


@pytest.mark.parametrize("text", ["", "  \n", "&nbsp;"])
def test_an_empty_prompt_is_refused(encoder: UMT5Encoder, text: str) -> None:
    with pytest.raises(BadRequest, match="the prompt is empty"):
        encoder.encode(["a red box", text])


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    small = load_file(folder / "original.safetensors")
    small["token_embedding.weight"] = small["token_embedding.weight"][:4].clone()
    save_file(small, tmp_path / "small.safetensors")
    with pytest.raises(BadRequest, match="is another model's: it has 6 ids, the encoder only 4"):
        UMT5Encoder(tmp_path / "small.safetensors", folder)


def test_other_weights_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"no weights of a UMT5 encoder: shared.weight is missing"):
        load_umt5({"conv.weight": torch.zeros(1)})
    tensors = {name[2:]: t for name, t in load_file(FIXTURE).items() if name.startswith("w/")}
    del tensors["blocks.1.ffn.fc1.weight"]
    with pytest.raises(BadRequest, match=r"1 missing: encoder.block.1.layer.1.DenseReluDense.wi_1.weight"):
        load_umt5(tensors)
