"""What every run that trains a model keeps between two calls: its weights, their average, and the optimiser."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from riverrun.train.data import store


class Resumable:
    """A run's weights, their average and the optimiser, in ``folder / file``: what a later call goes on from."""

    file: str
    folder: Path
    step: int
    model: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer

    def follow(self, ema: float) -> None:
        """The average goes a step after the weights, quicker while the run is young."""
        keep = min(ema, (self.step + 1) / (self.step + 10))
        for average, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
            average.data.lerp_(now.data, 1 - keep)

    def save(self) -> None:
        state = {
            "step": self.step, "model": self.model.state_dict(), "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }  # fmt: skip
        store(state, self.folder / self.file)

    def load(self) -> bool:
        """Goes on from the folder's checkpoint, if there is one."""
        path = self.folder / self.file
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        return True
