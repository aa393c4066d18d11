"""A fixture: what the official implementation gave, and how near we must come (see tests/fixtures/)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One fixture. meta: its JSON. Tensors are found by their full names: "w/…", "in/…", "out/…".

    folder: where it lies, for fixtures that name another.
    used: the names asked for so far.
    """

    method: str
    kind: str
    name: str
    meta: dict[str, Any]
    loaded: dict[str, Tensor]
    folder: Path
    used: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> Case:
        """path: the JSON; its own tensors and those of the `weights` files in the same folder are read."""
        meta = json.loads(path.read_text())
        own = path.with_suffix(".safetensors")
        files = {own, *(path.parent / name for name in meta.get("weights", ()))}
        loaded = {name: tensor for file in files if file.exists() for name, tensor in load_file(file).items()}
        return cls(meta["method"], meta["kind"], path.stem, meta, loaded, path.parent)

    def __getitem__(self, name: str) -> Tensor:
        self.used.add(name)
        return self.loaded[name]

    def __contains__(self, name: str) -> bool:
        return name in self.loaded

    def names(self) -> Iterator[str]:
        return iter(sorted(self.loaded))

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under `prefix`, by the rest of their names."""
        return {name.removeprefix(prefix): t for name, t in self.loaded.items() if name.startswith(prefix)}

    def close(self, actual: Tensor, name: str) -> None:
        """Asserts that `actual` is the tensor `name`, within the fixture's tolerance."""
        tolerance = self.meta["tolerance"]
        torch.testing.assert_close(
            actual.detach().float(),
            self[name].float(),
            atol=tolerance["atol"],
            rtol=tolerance["rtol"],
            msg=lambda text: f"{self.method}/{self.name} {name}: {text}",
        )

    def unread(self) -> list[str]:
        """Results of the reference that nothing was compared with."""
        return [name for name in self.names() if name.startswith("out/") and name not in self.used]

    def close_if_there(self, actual: Tensor, name: str) -> None:
        """As `close`; large cases keep only some of their intermediate tensors."""
        if name in self.loaded:
            self.close(actual, name)
