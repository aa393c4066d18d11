"""FLUX.1's prompt encoders: one vector from CLIP, one row for each T5 token (easycontrol.md §7, §10). Stateless.

Both go out as one array, the pooled vector in front: [1 + text_len, width], zeros behind what is narrower. The T5 rows
of the padding are kept and attended to, as the released pipeline does: it hands T5 no mask.

Weights: `text_encoder` (CLIP-L) and `text_encoder_2` (T5-XXL v1.1) of FLUX.1-dev, MIT and Apache-2.0 by their authors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase, T5Config, T5EncoderModel

from riverrun.models.base import BadRequest
from riverrun.models.text.umt5 import load_tokenizer
from riverrun.models.weights import default_device, float_dtype, load_strict, locate, read

CLIP_TOKENS = 77
"""Tokens of a prompt that CLIP takes; longer ones are cut."""
_TIED = ("shared.weight", "encoder.embed_tokens.weight")


class FluxPrompts:
    """Prompts -> what a FLUX model is conditioned on, shared by all sessions (`base.PromptEncoder`)."""

    def __init__(
        self,
        clip: str | Path,
        clip_tokenizer: str | Path,
        t5: str | Path,
        t5_tokenizer: str | Path,
        *,
        text_len: int = 512,
        dtype: str = "float32",
        device: str | None = None,
    ) -> None:
        """clip, t5: folders with weights and config.json, as in diffusers' layout. *_tokenizer: a folder or a
        tokenizer.json. All may be hub names. text_len: T5 rows of a prompt; longer ones are cut. device: default CUDA
        where there is one.

        Raises BadRequest for weights that don't fit, or another model's tokenizer.
        """
        self.text_len = text_len
        place = default_device(device)
        self.clip = load_clip(clip).to(place, float_dtype(dtype))
        self.t5 = load_t5(t5).to(place, float_dtype(dtype))
        self._tokenizers = load_tokenizer(clip_tokenizer), load_tokenizer(t5_tokenizer)
        for tokenizer, encoder in zip(self._tokenizers, (self.clip, self.t5), strict=True):
            if len(tokenizer) > encoder.config.vocab_size:
                ids = f"{len(tokenizer)} ids, the encoder only {encoder.config.vocab_size}"
                raise BadRequest(f"a tokenizer is another model's: it has {ids}")

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [B, 1 + text_len, width], width being the wider encoder's. Raises BadRequest for an empty text."""
        if not all(text.strip() for text in texts):
            raise BadRequest("the prompt is empty; give it at least one word")
        clip, t5 = self._tokenizers
        length = min(CLIP_TOKENS, self.clip.config.max_position_embeddings)
        pooled = self.clip(input_ids=self._ids(clip, texts, length)).pooler_output  # (B, P)
        rows = self.t5(input_ids=self._ids(t5, texts, self.text_len)).last_hidden_state  # (B, text_len, J)
        both = rows.new_zeros(len(texts), 1 + self.text_len, max(pooled.shape[-1], rows.shape[-1]))
        both[:, 0, : pooled.shape[-1]] = pooled
        both[:, 1:, : rows.shape[-1]] = rows
        return both.float().cpu().numpy()

    def _ids(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> Tensor:
        rows = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True)["input_ids"]
        return torch.tensor(rows, device=self.t5.device)


def load_clip(source: str | Path) -> CLIPTextModel:
    """CLIP's text encoder from a folder. Raises BadRequest if the weights don't fit its config."""
    encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(locate(source)))
    # Released files name all under text_model, transformers 5 does not; older ones have a table of positions.
    inside = "text_model." if any(name.startswith("text_model.") for name in encoder.state_dict()) else ""
    tensors = {inside + name.removeprefix("text_model."): tensor for name, tensor in read(source).items()}
    load_strict(encoder, {name: t for name, t in tensors.items() if not name.endswith(".position_ids")})
    return encoder.eval().requires_grad_(False)


def load_t5(source: str | Path) -> T5EncoderModel:
    """T5's encoder from a folder. Raises BadRequest if the weights don't fit its config."""
    with torch.device("meta"):
        encoder = T5EncoderModel(T5Config.from_pretrained(locate(source)))
    tensors = read(source)
    if "shared.weight" in tensors:
        tensors |= dict.fromkeys(_TIED, tensors["shared.weight"])
    load_strict(encoder, tensors)
    encoder.tie_weights()
    return encoder.eval().requires_grad_(False)
