"""Counter-based randomness: a draw is a function of its name, never of what was drawn before (design §3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, chunk: int, draw: int) -> np.random.Generator:
    """The generator of one draw, the same for the same (seed, chunk, draw) wherever it is made.

    seed: 64 bits, one for each session and stage.
    """
    bits = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=np.array([0, 0, draw, chunk], np.uint64))
    return np.random.Generator(bits)


def normal(shape: tuple[int, ...], *, seed: int, chunk: int, draw: int) -> Tensor:
    """float32 standard normal of `generator`, on the host."""
    return torch.from_numpy(generator(seed, chunk, draw).standard_normal(shape, dtype=np.float32))
