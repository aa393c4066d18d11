"""FLUX's prompt encoders, on tiny random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from riverrun.models.base import BadRequest
from riverrun.models.generation.flux_prompts import FluxPrompts

WORDS = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "house": 5, "at": 6, "night": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("flux")
    words = Tokenizer(WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(folder / "tokenizer")
    sizes = {"vocab_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPTextConfig(
        **sizes, hidden_size=8, intermediate_size=16, max_position_embeddings=6, eos_token_id=1, pad_token_id=0
    )
    CLIPTextModel(clip).save_pretrained(folder / "clip")
    t5 = T5Config(vocab_size=8, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    T5EncoderModel(t5).save_pretrained(folder / "t5")
    return folder


def load(folder: Path, **names: str) -> FluxPrompts:
    names = {"clip": "clip", "clip_tokenizer": "tokenizer", "t5": "t5", "t5_tokenizer": "tokenizer"} | names
    return FluxPrompts(**{name: folder / file for name, file in names.items()}, text_len=9)  # type: ignore[arg-type]


def test_pooled_row_first_then_a_row_a_token(folder: Path) -> None:
    prompts = load(folder)
    both = prompts.encode(["a red house", "a house at night"])
    assert (both.shape, both.dtype) == ((2, 10, 12), np.float32)
    assert not both[:, 0, 8:].any()
    ids = torch.tensor([[3, 4, 5, 1, 0, 0], [3, 5, 6, 7, 1, 0]])
    clip = CLIPTextModel.from_pretrained(folder / "clip")
    t5 = T5EncoderModel.from_pretrained(folder / "t5")
    with torch.no_grad():
        pooled = clip(input_ids=ids).pooler_output
        rows = t5(input_ids=torch.nn.functional.pad(ids, (0, 3))).last_hidden_state
    np.testing.assert_allclose(both[:, 0, :8], pooled, atol=1e-6)
    np.testing.assert_allclose(both[:, 1:], rows, atol=1e-6)
    assert both[:, 9].any(), "rows of the padding are attended to"
    np.testing.assert_allclose(prompts.encode(["a house at night"])[0], both[1], atol=1e-6)


def test_long_prompts_are_cut_and_empty_ones_refused(folder: Path) -> None:
    prompts = load(folder)
    assert prompts.encode(["red " * 40]).shape == (1, 10, 12)
    with pytest.raises(BadRequest, match="the prompt is empty"):
        prompts.encode(["a house", " "])


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_both_key_forms_of_clip(folder: Path, tmp_path: Path, prefix: str) -> None:
    """Released files have the prefix, and at times a table that is no weight."""
    tensors = load_file(folder / "clip" / "model.safetensors")
    renamed = {prefix + name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    renamed[f"{prefix}embeddings.position_ids"] = torch.arange(6)[None]
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "clip" / "config.json").read_text())
    made, expected = (load(folder, clip=str(path)).encode(["a house"]) for path in (tmp_path, folder / "clip"))
    assert np.array_equal(made, expected)


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    with pytest.raises(BadRequest, match="the weights don't fit CLIPTextModel"):
        load(folder, clip="t5")
