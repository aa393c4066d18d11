"""A model whose actor writes no checkpoint as long as a file is there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from riverrun.models.synthetic import Synthetic
from riverrun.store.blobs import BlobStore
from riverrun.store.checkpoints import Manifest


class Stuck(Synthetic):
    """until: the file. Changes the class of blob stores in the whole process, which is an actor's."""

    def __init__(self, until: str) -> None:
        write: Any = BlobStore.write

        def stuck(self: BlobStore, manifest: Manifest, tensors: Mapping[str, np.ndarray]) -> Manifest:
            while Path(until).exists():
                time.sleep(0.01)
            return write(self, manifest, tensors)

        BlobStore.write = stuck  # type: ignore[method-assign]
