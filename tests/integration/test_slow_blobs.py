"""A blob store that takes nothing holds up no State that comes or goes."""

from __future__ import annotations

from pathlib import Path

import ray

from riverrun.actors.stage_actor import WAITING_THREADS, start_stage
from riverrun.configs import ActorConfig, ModelConfig
from riverrun.configs.durability import CheckpointConfig
from riverrun.configs.telemetry import ActorSetup
from riverrun.graphs.stage import Epoch, OpenRequest, RestoreRequest, SaveOrder, StepRequest

DEADLINE_S = 120.0
EPOCH = Epoch(1, "n")


def test_states_are_put_here_and_taken_away_while_none_can_be_written(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.touch()
    model = "riverrun.tests.integration.stuck:Stuck"
    sessions = 2 * WAITING_THREADS
    limits = ActorConfig(max_sessions=2 * sessions)
    config = ModelConfig("stuck", model, "generation", args={"until": str(full)}, actor=limits)
    actor = start_stage(ActorSetup(checkpoints=CheckpointConfig(uri=str(tmp_path / "blobs"))), config, "one")
    try:
        ray.get(actor.load.remote(), timeout=DEADLINE_S)
        waiting = []
        for number in range(sessions):  # twice as many as wait at once
            opening = OpenRequest(f"s{number}/a", EPOCH, {}, seed=1)
            ray.get(actor.open.remote(opening), timeout=DEADLINE_S)
            step = StepRequest(opening.session, EPOCH, 0, save=SaveOrder("exact"))
            ray.get(actor.step.remote(step, frozenset()), timeout=DEADLINE_S)
            waiting.append(actor.saved.remote(opening.session, EPOCH, 0))
        packet = ray.get(actor.export.remote("s0/a", EPOCH), timeout=DEADLINE_S)
        opening = OpenRequest("moved/a", EPOCH, {}, seed=1)
        ray.get(actor.prepare.remote(RestoreRequest(opening, 1)), timeout=DEADLINE_S)
        request = RestoreRequest(opening, 1, packet)
        assert ray.get(actor.restore.remote(request), timeout=DEADLINE_S).mark.seq == 1
        assert ray.wait(waiting, num_returns=1, timeout=0)[0] == []
        full.unlink()
        assert [saved.mark.seq for saved in ray.get(waiting, timeout=DEADLINE_S)] == [1] * sessions
    finally:
        ray.kill(actor)
