"""Every fixture under tests/fixtures, and under the folders in RIVERRUN_FIXTURES, against our own models.

Cases lie at <folder>/<method>/<name>.json. What is replayed how is looked up by the JSON's `method` and `kind`;
everything else is read from the case, so that folders never seen before replay too. Several folders are separated
as in PATH.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from riverrun.tests.parity import (
    ca2vdm,
    easycontrol,
    infinitevggt,
    infvsr,
    jacobi_forcing,
    locret,
    longlive,
    vidgpt,
    wan,
    wedlm,
)
from riverrun.tests.parity.cases import Case

REPLAYS: dict[tuple[str, str], Callable[[Case], None]] = {
    **ca2vdm.REPLAYS,
    **easycontrol.REPLAYS,
    **infinitevggt.REPLAYS,
    **infvsr.REPLAYS,
    **jacobi_forcing.REPLAYS,
    **locret.REPLAYS,
    **longlive.REPLAYS,
    **vidgpt.REPLAYS,
    **wan.REPLAYS,
    **wedlm.REPLAYS,
}
METHODS = {method for method, _ in REPLAYS}
NOT_OURS = {
    # inside one attention, which ours has nowhere as a whole: `b0_self_attn` is their outcome, and compared
    ("longlive", "dit_calls"): r"out/call\d+/b0_(roped_[qk]|attn_heads_out)",
    # the official trace throws the second block's work away, so of these the text decides
    ("jacobi_forcing", "multiblock"): r"out/forward_\w+",
    # a sampled text is not the greedy one, and begins from random drafts, not from those of the prefill
    ("jacobi_forcing", "engine_sample"): r"out/(ar_ids|prefill_draft)\.\d+",
}
"""Results in our own folder that nothing is compared with, and why."""
DATA = {"weights", "stream_images"}  # kinds that only hold tensors for other cases
OWN = Path(__file__).parents[1] / "fixtures"


def found() -> Iterator[pytest.param]:
    others = [Path(folder) for folder in os.environ.get("RIVERRUN_FIXTURES", "").split(os.pathsep) if folder]
    seen: set[str] = set()
    for folder in [*others, OWN]:
        for path in sorted(folder.glob("*/*.json")):
            meta = json.loads(path.read_text())
            name = f"{meta['method']}/{path.stem}"
            if meta["kind"] not in DATA and name not in seen:  # the full set holds our copies too
                seen.add(name)
                yield pytest.param(path, meta["method"], meta["kind"], id=name)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("path", "method", "kind"), found())
def test_parity(path: Path, method: str, kind: str) -> None:
    if method not in METHODS:
        pytest.skip(f"method not built yet: {method}")
    replay = REPLAYS.get((method, kind))
    assert replay is not None, f"no replay for kind {kind!r} of {method}; known: {sorted(REPLAYS)}"
    with torch.no_grad():
        case = Case.read(path)
        replay(case)
    if path.is_relative_to(OWN):  # others may hold more than we know of
        unread = [name for name in case.unread() if not re.fullmatch(NOT_OURS.get((method, kind), ""), name)]
        assert unread == [], "results that nothing was compared with"
