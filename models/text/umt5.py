"""The prompt encoder of the Wan family: cleaned text -> UMT5 tokens -> rows the model attends to (wan_base.md §4)."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from riverrun.models.base import BadRequest
from riverrun.models.key_forms import umt5_keys
from riverrun.models.weights import default_device, float_dtype, load_strict, locate, read

TEXT_LEN = 512
"""Rows the released models were trained with."""
_TIED = ("shared.weight", "encoder.embed_tokens.weight")


def clean(text: str) -> str:
    """Text as Wan cleans it: broken encodings mended, HTML entities resolved twice, white space collapsed."""
    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", mended).strip()


def umt5_config(tensors: Mapping[str, Tensor], stated: Mapping[str, Any] | None = None) -> UMT5Config:
    """The encoder's configuration, read from the shapes of its weights (transformers' names).

    What shapes don't show is the released encoder's (relative positions up to 128, eps 1e-6), unless `stated`, a
    config.json of transformers, says otherwise. Raises BadRequest if these are no weights of a UMT5 encoder.
    """
    layer = "encoder.block.0.layer"
    try:
        vocab, dim = tensors["shared.weight"].shape
        buckets, heads = tensors[f"{layer}.0.SelfAttention.relative_attention_bias.weight"].shape
        inner = tensors[f"{layer}.0.SelfAttention.q.weight"].shape[0]
        hidden = tensors[f"{layer}.1.DenseReluDense.wo.weight"].shape[1]
    except KeyError as error:
        raise BadRequest(f"these are no weights of a UMT5 encoder: {error.args[0]} is missing") from error
    layers = {int(found[1]) for key in tensors if (found := re.match(r"encoder\.block\.(\d+)\.", key))}
    sizes: dict[str, Any] = {
        "vocab_size": vocab,
        "d_model": dim,
        "d_kv": inner // heads,
        "d_ff": hidden,
        "num_layers": len(layers),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
    }
    sizes |= {name: value for name, value in (stated or {}).items() if name in sizes}
    return UMT5Config(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0)


def load_umt5(tensors: Mapping[str, Tensor], stated: Mapping[str, Any] | None = None) -> UMT5EncoderModel:
    """transformers' encoder with these weights, of either key form; `stated` as for `umt5_config`.

    Raises BadRequest if they don't fit.
    """
    named = umt5_keys(tensors)
    config = umt5_config(named, stated)
    with torch.device("meta"):
        encoder = UMT5EncoderModel(config)
    load_strict(encoder, named | dict.fromkeys(_TIED, named["shared.weight"]))
    encoder.tie_weights()  # one parameter again, or .to() would make two of a quarter of the weights
    return encoder.eval()


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer.json, a tokenizer's folder, or either on the hub (as `weights.locate` takes them)."""
    path = locate(source)
    bare = path if path.is_file() else path / "tokenizer.json"
    if path.is_file() or (bare.is_file() and not (path / "tokenizer_config.json").is_file()):
        return PreTrainedTokenizerFast(tokenizer_file=str(bare))
    return AutoTokenizer.from_pretrained(path)


def zero_padding(hidden: Tensor, mask: Tensor) -> Tensor:
    """The encoder's output [B, T, dim] with zeros where the mask [B, T] is 0."""
    return hidden * mask.to(hidden.device, hidden.dtype)[..., None]


class UMT5Encoder:
    """Prompts -> the rows a Wan model attends to. Stateless, shared by all sessions (`base.PromptEncoder`).

    Rows past a prompt's own tokens are zero, not left out: the model projects and attends to them all the same.
    """

    def __init__(
        self,
        weights: str | Path,
        tokenizer: str | Path,
        *,
        config: str | Path | None = None,
        text_len: int = TEXT_LEN,
        dtype: str | None = None,
        device: str | None = None,
    ) -> None:
        """weights, tokenizer: paths or hub names, weights in either key form. config: a config.json of transformers,
        needed only for what `umt5_config` can't know. text_len: rows of each prompt; longer ones are cut (the end
        token stays). dtype: default the file's own. device: default CUDA where there is one.

        Raises BadRequest for weights that don't fit, or another model's tokenizer.
        """
        self.text_len = text_len
        self.tokenizer = load_tokenizer(tokenizer)
        stated = None if config is None else json.loads(locate(config).read_text())
        self.encoder = load_umt5(read(weights), stated).requires_grad_(False)
        place = default_device(device)
        self.encoder.to(device=place, dtype=float_dtype(dtype) if dtype else None)  # type: ignore[call-arg]
        if len(self.tokenizer) > self.encoder.config.vocab_size:
            ids = f"{len(self.tokenizer)} ids, the encoder only {self.encoder.config.vocab_size}"
            raise BadRequest(f"{tokenizer} is another model's: it has {ids}")

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [B, text_len, dim]. Raises BadRequest for an empty text."""
        return self.embed(*self.tokenize(texts)).cpu().numpy()

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(ids, mask), both int64 [B, text_len]; the mask is 1 at a prompt's own tokens, its end token included."""
        cleaned = [clean(text) for text in texts]
        if not all(cleaned):
            raise BadRequest("the prompt is empty; give it at least one word")
        rows = self.tokenizer(cleaned, truncation=True, max_length=self.text_len)["input_ids"]
        ids = torch.full((len(rows), self.text_len), self.encoder.config.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return ids, mask

    @torch.no_grad()
    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask [B, T] as `tokenize` gives them -> float32 [B, T, dim], zero where the mask is."""
        device = self.encoder.device
        hidden = self.encoder(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
        return zero_padding(hidden, mask).float()
