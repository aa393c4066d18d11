"""A whole service in a process of its own: it leaves well; killed, nothing of it stays and no client hangs."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from riverrun.protos import riverrun_pb2 as pb

from .conftest import DEADLINE_S, Stubs, eventually

LATE = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")

SERVE = """
import asyncio
from riverrun.actors.logs import set_up
from riverrun.actors.serve import Service
from riverrun.configs import load_service

OVERRIDES = ["port=0", "models=[synthetic]", "ray_address=local", "drain_s=2", "log.format=json", "log.level=debug"]

async def main():
    config = load_service(None, OVERRIDES)
    set_up(config.log)
    async with Service(config) as it:
        print(it.address, flush=True)
        await it.until_stopped()

asyncio.run(main())
"""


@pytest.fixture
def log(tmp_path):
    """What the service writes to stderr."""
    return tmp_path / "stderr"


@pytest.fixture
def temporary():
    """Where the service puts what goes with it. What is killed can't clear it; a socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def served(log, temporary):
    """(process, its descendants, a stream that has had its first frames, stubs)."""
    env = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "RAY_ADDRESS", "RAY_TMPDIR")}
    env["TMPDIR"] = str(temporary)
    with log.open("w") as errors:
        command = [sys.executable, "-c", SERVE]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env)
    address = process.stdout.readline().strip()
    with grpc.insecure_channel(address) as channel:
        stubs = Stubs(channel)
        session = stubs.create(params={"step_ms": 20})
        stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=500)])
        stream.frames(4)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 4  # store, Ray's own, controller, stage actor
        yield process, family, stream, stubs
    process.kill()
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait(DEADLINE_S)


def all_gone(family: list[psutil.Process]) -> bool:
    return not any(is_there(one) for one in family)


def is_there(one: psutil.Process) -> bool:
    """Two of Ray's own processes are not counted: they notice a minute after their head died."""
    try:
        return one.status() != psutil.STATUS_ZOMBIE and not any(name in " ".join(one.cmdline()) for name in LATE)
    except psutil.NoSuchProcess:
        return False


def test_sigterm_tells_the_client_ends_the_session_and_leaves_nothing(served, temporary, code):
    process, family, stream, stubs = served
    assert list(temporary.glob("riverrun-*"))
    process.send_signal(signal.SIGTERM)
    away = stream.until("go_away")
    assert away.reason == "the service got SIGTERM"
    health = health_pb2_grpc.HealthStub(stubs.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert code(stubs.create) == ("UNAVAILABLE", "no new sessions: the service got SIGTERM")
    ended = stream.until("event")
    assert (ended.type, ended.reason) == (pb.Event.TYPE_ENDED, "the service got SIGTERM")
    stream.half_close()
    assert stream.rest() == []
    assert process.wait(DEADLINE_S) == 0
    assert eventually(lambda: all_gone(family))
    assert not list(temporary.glob("riverrun-*"))


def test_a_second_signal_waits_for_no_client(served):
    process, family, stream, _ = served
    process.send_signal(signal.SIGINT)
    stream.until("go_away")
    process.send_signal(signal.SIGINT)
    assert stream.until("event").type == pb.Event.TYPE_ENDED
    assert process.wait(DEADLINE_S) == 0
    assert eventually(lambda: all_gone(family))


def test_sigkill_of_the_whole_service_is_a_clear_error_and_leaves_nothing(served, code):
    process, family, stream, _ = served
    process.kill()
    name, line = code(stream.rest)
    assert name == "UNAVAILABLE"
    assert line
    assert eventually(lambda: all_gone(family))


def test_every_process_logs_in_one_form_what_its_lines_are_about(served, log):
    def lines():
        text = log.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    process, *_ = served
    steps = eventually(lambda: [line for line in lines() if line["logger"] == "riverrun.actors.stage"], 60)
    opened = next(line for line in lines() if "is open" in line["message"])
    assert (opened["graph"], opened["epoch"], opened["pid"]) == ("synthetic", 1, process.pid)
    assert all((line["session"], line["stage"]) == (opened["session"], "synthetic") for line in steps)
    assert [line["seq"] for line in steps] == list(range(len(steps)))
    assert {line["pid"] for line in steps}.isdisjoint({process.pid})
