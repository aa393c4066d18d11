"""The client against a fake service: exactly once, credits, controls, errors."""

import asyncio
import subprocess
import sys

import grpc
import numpy as np
import pytest

import riverrun
from riverrun.client.loop import LoopThread
from riverrun.client.types import Patience
from riverrun.configs import ServiceConfig
from riverrun.protos import DEFAULT_PORT


def numbers(frames):
    return [frame.number for frame in frames]


def test_a_stream_gives_every_frame_once_as_numpy(running):
    with running.client() as rr, rr.stream("generate", prompt="a", frames=23) as stream:
        frames = list(stream)
    assert numbers(frames) == list(range(23))
    assert [f.array[1, 1, 0] for f in frames] == list(range(23))
    assert frames[16].seconds == 1.0
    assert frames[5].chunk == 1
    assert np.asarray(frames[3]).shape == (16, 16, 3)
    assert stream.ended_reason == "all frames were made"
    assert running.service.sessions["s0"].acked["video"] == 22


def test_seconds_become_frames_by_the_graph_s_rate(running):
    with running.client() as rr:
        assert len(list(rr.stream("generate", prompt="a", seconds=0.5))) == 8


def test_seconds_wait_for_a_model_that_is_loading(running):
    running.service.loading = 4
    with running.client() as rr:
        assert len(list(rr.stream("generate", prompt="a", seconds=0.5))) == 8
    assert running.service.loading == 0


def test_a_lead_is_asked_for_only_if_given(running):
    with running.client() as rr:
        for lead in (None, 0, 1.5):
            rr.stream("generate", prompt="a", frames=1, lead=lead).close()
    assert running.service.leads == [None, 0.0, 1.5]


@pytest.mark.parametrize("cuts", [[0], [5], [3, 0, 1, 7], [1] * 12])
def test_reconnects_lose_and_repeat_nothing(running, cuts):
    running.service.cuts = list(cuts)
    with running.client() as rr, rr.stream("generate", prompt="a", frames=30) as stream:
        assert numbers(stream) == list(range(30))
        assert stream.reconnects == len(cuts)
    assert len(running.service.opens) == len(cuts) + 1


def test_frames_that_come_again_are_dropped_and_their_credits_return(running):
    running.service.cuts = [6, 6, 6, 6]
    running.service.faults = {"resend"}
    with running.client() as rr:
        assert numbers(rr.stream("generate", prompt="a", frames=40)) == list(range(40))


@pytest.mark.parametrize("frames", [3, 8, 23, 40])
def test_a_server_that_hangs_up_at_the_end_costs_no_frame(running, frames):
    running.service.faults = {"hang up"}
    with running.client() as rr:
        assert numbers(rr.stream("generate", prompt="a", frames=frames)) == list(range(frames))


def test_go_away_moves_on_at_once(running):
    running.service.cuts = [5]
    running.service.faults = {"go away"}
    with running.client() as rr, rr.stream("generate", prompt="a", frames=12) as stream:
        assert numbers(stream) == list(range(12))
        assert stream.reconnects == 1


def test_a_service_that_restarts_is_found_again(running):
    with running.client() as rr, rr.stream("generate", prompt="a", frames=24) as stream:
        first = [next(stream) for _ in range(3)]
        running.stop()
        running.start()
        assert numbers([*first, *stream]) == list(range(24))


def test_a_service_that_stays_away_is_given_up(running):
    patience = Patience(reconnect=0.3, first_wait=0.01, longest_wait=0.05)
    with running.client(patience) as rr, rr.stream("generate", prompt="a") as stream:
        next(stream)
        running.stop()
        with pytest.raises(riverrun.Unavailable, match=r"gave up after 0\.3 s: no riverrun service answers at 127"):
            list(stream)
        running.start()


def test_a_suspended_session_is_asked_for_when_the_service_said(running):
    running.service.cuts = [5]
    running.service.laters = [0.6, 0.5, 0.4]
    patience = Patience(reconnect=0.5, first_wait=0.01, longest_wait=0.05)
    with running.client(patience) as rr, rr.stream("generate", prompt="a", frames=12) as stream:
        assert numbers(stream) == list(range(12))
        assert stream.reconnects == 3
    _, cut, first, second, third = running.service.called
    assert (first - cut >= 0.6, second - first >= 0.5, third - second >= 0.4) == (True, True, True)


def test_a_suspended_session_that_finds_no_place_is_given_up(running):
    running.service.cuts = [5]
    running.service.laters = [0.1, 0.1, 500.0]
    with running.client(Patience(first_wait=0.01, room=400.0)) as rr, rr.stream("generate", prompt="a") as stream:
        with pytest.raises(riverrun.NoRoom, match="no place for it in 400 s: all places are taken"):
            list(stream)
        assert stream.reconnects == 2


def test_a_session_whose_answer_was_lost_is_not_made_twice(running):
    running.service.faults = {"lose the answer"}
    with running.client() as rr:
        assert len(list(rr.stream("generate", prompt="a", frames=8))) == 8
    assert len(running.service.sessions) == 1


def test_credits_bound_what_waits_here(running):
    running.service.ports = ["video", "second"]
    with running.client() as rr, rr.stream("generate", prompt="a", buffer=3) as stream:
        for _ in range(20):
            next(stream)
        made = running.service.sessions["s0"].made
        stream.ping()  # so that what was on its way has been sent
        assert all(len(parts) <= 20 + 3 for parts in made.values())
        for ledger in stream._stream._ledgers.values():
            ledger.check()


def test_several_ports_each_in_order(running):
    running.service.ports = ["video", "second"]
    running.service.cuts = [7, 9]
    with running.client() as rr:
        frames = list(rr.stream("generate", prompt="a", frames=16))
        for port in ("video", "second"):
            assert numbers(f for f in frames if f.port == port) == list(range(16))
        only = list(rr.stream("generate", prompt="a", frames=8, ports=["second"], codec="png"))
    assert {f.port for f in only} == {"second"}
    assert only[2].array[1, 1, 0] == 102


def test_a_prompt_has_two_receipts_and_shows_in_the_frames(running):
    with running.client() as rr, rr.stream("generate", prompt="a", frames=60) as stream:
        frames = [next(stream) for _ in range(3)]
        change = stream.prompt("b")
        change.received(timeout=10)
        frames += list(stream)
        receipt = change.applied(timeout=10)
    assert receipt.frame % 4 == 0
    assert receipt.frame == receipt.chunk * 4
    assert [f.revision for f in frames] == [int(f.number >= receipt.frame) for f in frames]
    assert frames[-1].array[0, 0, 0] == ord("b")
    assert frames[0].array[0, 0, 0] == ord("a")


def test_a_lost_receipt_is_made_good_by_the_frames(running):
    running.service.faults = {"lose receipts"}
    with running.client() as rr, rr.stream("generate", prompt="a", frames=40) as stream:
        change = stream.prompt("b")
        frames = list(stream)
        assert change.applied(timeout=10).frame == next(f.number for f in frames if f.revision == 1)


def test_a_control_sent_while_the_service_is_away_arrives_later(running):
    with running.client() as rr, rr.stream("generate", prompt="a", frames=40) as stream:
        next(stream)
        running.stop()
        change = stream.prompt("b")
        running.start()
        list(stream)
        assert change.applied(timeout=10).frame > 0


def test_a_refused_control_raises_and_the_stream_goes_on(running):
    with running.client() as rr, rr.stream("generate", prompt="a", frames=24) as stream:
        change = stream.prompt("")
        with pytest.raises(riverrun.Rejected, match="prompt must not be empty"):
            change.applied(timeout=10)
        assert len(list(stream)) == 24


def test_pause_and_resume(running):
    with running.client() as rr, rr.stream("generate", prompt="a", frames=24) as stream:
        stream.pause().applied(timeout=10)
        paused_at = len(running.service.sessions["s0"].made["video"])
        stream.ping()
        assert len(running.service.sessions["s0"].made["video"]) == paused_at
        stream.resume().applied(timeout=10)
        assert len(list(stream)) == 24


def test_close_ends_the_session_and_pending_controls(running):
    with running.client() as rr:
        stream = rr.stream("generate", prompt="a")
        next(stream)
        stream.pause().applied(timeout=10)
        change = stream.prompt("b")
        stream.close()
        stream.close()
        with pytest.raises(riverrun.Error, match="ended before"):
            change.applied(timeout=10)
        with pytest.raises(riverrun.BadRequest, match="the stream has ended"):
            stream.prompt("c")
        assert rr.session(stream.session_id).reason == "closed by the client"


def test_leaving_the_client_closes_its_streams(running):
    with running.client() as rr:
        next(rr.stream("generate", prompt="a"))
    assert running.service.sessions["s0"].record.state == 4


def test_a_viewer_watches_and_steers_nothing(running):
    with running.client() as rr, rr.stream("generate", prompt="a", frames=40) as stream:
        next(stream)
        viewer = rr.attach(stream.session_id)
        assert next(viewer).number == 0
        with pytest.raises(riverrun.BadRequest, match="viewer"):
            viewer.prompt("b")
        viewer.close()
        assert len(list(stream)) == 39


def test_another_process_goes_on_with_the_token(running):
    with running.client() as rr:
        stream = rr.stream("generate", prompt="a", frames=20)
        [next(stream) for _ in range(5)]
        again = rr.attach(stream.session_id, stream.session.resume_token)
        assert len(list(again)) == 20


@pytest.mark.parametrize(
    ("graph", "options", "kind", "code", "says"),
    [
        ("nope", {}, riverrun.NotFound, "NOT_FOUND", "unknown graph 'nope'; there are generate"),
        ("nope", {"seconds": 1}, riverrun.NotFound, "NOT_FOUND", "unknown graph 'nope'; there are generate"),
        ("generate", {"prompt": ""}, riverrun.BadRequest, "INVALID_ARGUMENT", "prompt must not be empty"),
        ("generate", {"codec": "mp3"}, riverrun.BadRequest, "INVALID_ARGUMENT", "unknown codec 'mp3'; there are raw"),
        ("generate", {"ports": ["depth"]}, riverrun.BadRequest, "INVALID_ARGUMENT", "unknown output 'depth'"),
        ("generate", {"buffer": 0}, riverrun.BadRequest, "INVALID_ARGUMENT", "buffer"),
        ("generate", {"frames": 0}, riverrun.BadRequest, "INVALID_ARGUMENT", "above 0"),
        ("generate", {"frames": 1, "seconds": 1}, riverrun.BadRequest, "INVALID_ARGUMENT", "not both"),
        ("generate", {"thing": object()}, riverrun.BadRequest, "INVALID_ARGUMENT", "parameters must be"),
    ],
)
def test_wrong_calls_raise_one_clear_line(running, graph, options, kind, code, says):
    with running.client() as rr, pytest.raises(kind, match=says) as caught:
        rr.stream(graph, **{"prompt": "a", **options})
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_full_service_says_so(running):
    running.service.faults = {"no room"}
    with running.client() as rr, pytest.raises(riverrun.NoRoom, match="all 4 sessions are taken"):
        rr.stream("generate", prompt="a")


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("gap", riverrun.Error, "frame 5 of port 'video' came after 3: frames are lost"),
        ("fail hang up", riverrun.Error, "stage generate failed at step 3"),
        ("fail", riverrun.Error, "stage generate failed at step 3"),
        ("replaced", riverrun.Replaced, "taken over by another client"),
    ],
)
def test_faults_of_the_service_end_the_stream_with_one_line(running, fault, kind, says):
    running.service.faults = {fault, *fault.split(maxsplit=1)}
    with running.client() as rr, pytest.raises(kind, match=says):
        list(rr.stream("generate", prompt="a", frames=40))


def test_frames_beyond_the_credits_are_refused(running):
    running.service.faults = {"greedy"}
    with running.client() as rr, rr.stream("generate", prompt="a", frames=40) as stream:
        running.loop.run(asyncio.wait({stream._stream._task}))
        assert [next(stream).number for _ in range(8)] == list(range(8))
        with pytest.raises(riverrun.Error, match="frame 8 of port 'video' came without credit"):
            next(stream)


def test_nobody_there(running):
    running.stop()
    with running.client() as rr:
        assert not rr.reachable()
        with pytest.raises(riverrun.Unavailable, match="start one with `riverrun serve`"):
            rr.graphs()
    running.start()


def test_another_service_at_the_port_is_told_from_ours():
    loop = LoopThread("a bare server")

    async def start():
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = loop.run(start())
    with riverrun.Client(f"127.0.0.1:{port}", loop=loop) as rr:
        assert not rr.reachable()
        with pytest.raises(riverrun.BadRequest, match="is no riverrun service"):
            rr.graphs()
    loop.run(server.stop(0))
    loop.stop()


def test_silence_is_noticed(running):
    running.service.faults = {"mute"}
    patience = Patience(reconnect=0.5, first_wait=0.01, longest_wait=0.05, ping=0.05, silence=0.2)
    with running.client(patience) as rr, rr.stream("generate", prompt="a") as stream:
        stream.pause().received(timeout=10)
        with pytest.raises(riverrun.Unavailable, match="no word from the service"):
            list(stream)
    assert running.service.pings >= 3


def test_lists_and_jobs(running, tmp_path):
    with running.client() as rr:
        for _ in range(5):
            rr.stream("generate", prompt="a")
        assert [s.session_id for s in rr.sessions()] == ["s0", "s1", "s2", "s3", "s4"]
        rr.close_session("s1", "enough")
        assert len(rr.sessions()) == 4
        assert len(rr.sessions(include_ended=True)) == 5
        assert [m.name for m in rr.models()] == ["fake"]
        job = rr.submit("generate", tmp_path / "a.mp4", prompt="a", seconds=2, at=[(16, "b")])
        assert running.service.submitted.sinks == {"video": (tmp_path / "a.mp4").as_uri()}
        assert running.service.submitted.controls[0].control.prompt == "b"
        assert [j.frames_done for j in rr.watch_job(job.job_id)] == [0, 32]
        assert rr.job(job.job_id).state == 2
        assert rr.cancel_job(job.job_id).state == 4
        assert len(rr.jobs()) == 1
        with pytest.raises(riverrun.NotFound, match="unknown job 'x'"):
            list(rr.watch_job("x"))


def test_import_is_cheap():
    heavy = "[m for m in ('torch', 'ray', 'grpc', 'numpy', 'transformers', 'av') if m in sys.modules]"
    code = f"import sys, riverrun; print({heavy}); riverrun.connect; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]


def test_an_unknown_public_name_lists_those_there_are():
    with pytest.raises(AttributeError, match="connect"):
        _ = riverrun.conect


def test_client_and_service_mean_the_same_port():
    assert ServiceConfig().port == DEFAULT_PORT


def test_the_asynchronous_client_is_the_same(running):
    async def main():
        async with riverrun.AsyncClient(running.address) as rr:
            stream = await rr.stream("generate", prompt="a", frames=40)
            change = stream.prompt("b")
            seen = [frame.number async for frame in stream]
            return seen, await change.applied(), [graph.name for graph in await rr.graphs()]

    seen, receipt, graphs = asyncio.run(main())
    assert seen == list(range(40))
    assert receipt.frame % 4 == 0
    assert graphs == ["generate"]
