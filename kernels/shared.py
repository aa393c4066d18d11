"""Entries that several sessions of an actor share: prompt keys and values, condition keys, common prefixes."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from torch import Tensor

T = TypeVar("T")


def content_key(*parts: str | int | float | np.ndarray) -> str:
    """A key made of content: equal arrays, texts and numbers give equal keys."""
    digest = hashlib.sha256()
    for part in parts:
        blob = part.tobytes() + str(part.dtype).encode() if isinstance(part, np.ndarray) else repr(part).encode()
        digest.update(len(blob).to_bytes(8, "little") + blob)
    return digest.hexdigest()


class SharedCache:
    """Immutable entries by content key. An entry lives as long as some session's State holds it, and no longer.

    Owned by the actor's model; a snapshot stores what the entry is built from, never the entry.
    """

    def __init__(self) -> None:
        self._entries: weakref.WeakValueDictionary[str, object] = weakref.WeakValueDictionary()

    def get(self, key: str, build: Callable[[], T]) -> T:
        """The entry of `key`, built now if no live session holds one. The caller must keep what it gets."""
        entry = self._entries.get(key)
        if entry is None:
            entry = build()
            self._entries[key] = entry
        return entry  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self._entries)


class TextEntry:
    """A prompt's cross-attention keys and values, [layers, ..., tokens, heads, head_dim] each."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes
