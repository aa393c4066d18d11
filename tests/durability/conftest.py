"""What the tests of this folder share: a world that can break, and the fakes of a session's own tests."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent


def _load(name: str, path: Path) -> ModuleType:
    """A file of tests as a module: test folders are no packages."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec
        assert spec.loader
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


fakes = _load("graph_fakes", HERE.parent / "graphs" / "conftest.py")
world = _load("durability_world", HERE / "world.py")
hosting = _load("durability_hosting", HERE / "hosting.py")


@pytest.fixture
def w() -> ModuleType:
    """The module `world`."""
    return world


@pytest.fixture
def host_on() -> Any:
    """Makes a gateway on a world."""
    return hosting.host_on


@pytest.fixture
def clock() -> Any:
    return fakes.FakeClock()


@pytest.fixture
def run() -> Any:
    """Runs an async test body; one that hangs fails."""

    async def timed(body: Any) -> Any:
        async with asyncio.timeout(60):
            return await body

    return lambda body: asyncio.run(timed(body))
