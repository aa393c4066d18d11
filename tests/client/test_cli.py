"""The command line against the fake service."""

import json
import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from riverrun.client.cli import app


@pytest.fixture
def riverrun_cli(running):
    """Calls `riverrun ARGS` against the fake service; returns click's result."""

    def call(*args, address=running.address):
        return CliRunner().invoke(app, [*args, *(["--address", address] if address else [])])

    return call


def test_run_writes_video_and_sheet_and_reports(riverrun_cli, tmp_path):
    film, sheet = tmp_path / "a.mp4", tmp_path / "a.png"
    options = (
        "--prompt",
        "a red ball",
        "--at",
        "0.5:blue",
        "--frames",
        "48",
        "--out",
        str(film),
        "--sheet",
        str(sheet),
    )
    done = riverrun_cli("run", "generate", *options, "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["frames"] == 48
    assert summary["files"] == [str(film), str(sheet)]
    (switch,) = summary["switches"]
    assert switch["sent_after_frame"] == 8
    assert switch["applied_frame"] % 4 == 0
    assert switch["applied_s"] == switch["applied_frame"] / 16
    assert summary["timings"]["chunks"] == 12
    assert film.stat().st_size > 0
    assert sheet.stat().st_size > 0


def test_run_takes_seconds_and_prints_text(riverrun_cli):
    done = riverrun_cli("run", "generate", "--prompt", "a", "--seconds", "0.5")
    assert done.exit_code == 0
    assert "8 frames of generate" in done.stdout


def test_several_ports_get_files_of_their_own(riverrun_cli, running, tmp_path):
    running.service.ports = ["video", "second"]
    done = riverrun_cli("run", "generate", "--prompt", "a", "--frames", "4", "--out", str(tmp_path / "a.mp4"))
    assert done.exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "a.second.mp4"]


def test_a_refused_switch_is_told_and_fails_the_command(riverrun_cli, running, monkeypatch):
    monkeypatch.setattr("riverrun.client.commands.run.parse_switch", lambda text: _switch("", 0.1))
    done = riverrun_cli("run", "generate", "--prompt", "a", "--frames", "24", "--at", "x")
    assert done.exit_code == 1
    assert "refused: prompt must not be empty" in done.stdout


def _switch(prompt, seconds):
    from riverrun.client.recorder import Switch

    return Switch(seconds, prompt)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("run", "nope", "--prompt", "a", "--frames", "4"), 1, "error: unknown graph 'nope'; there are generate"),
        (("run", "generate", "--prompt", "", "--frames", "4"), 1, "prompt must not be empty (INVALID_ARGUMENT)"),
        (("run", "generate", "--frames", "4", "--seconds", "1"), 2, "not both"),
        (("run", "generate", "--frames", "0"), 2, "--frames"),
        (("run", "generate", "--seconds", "-1"), 2, "--seconds"),
        (("run", "generate", "--seconds", "nan"), 1, "the length must be above 0, got nan"),
        (("run", "generate", "--frames", str(2**64)), 1, "the length must be 0..2^64-1"),
        (("run", "generate", "--frames", "1", "--seed", str(2**64)), 1, "seed must be 0..2^64-1"),
        (("run", "generate", "--frames", "1", "--lead", "-1"), 1, "lead must be 0..31622400 s, got -1.0"),
        (("run", "generate", "--frames", "1", "--lead", "nan"), 1, "lead must be 0..31622400 s, got nan"),
        (("run", "generate", "--at", "noon"), 2, "SECONDS:PROMPT"),
        (("run", "generate", "--at", "x:a red ball"), 2, "SECONDS:PROMPT"),
        (("run", "generate", "--param", "x"), 2, "NAME=VALUE"),
        (("run", "generate", "--prompt", "a", "--frames", "4", "--out", "a.gif"), 2, "must end in .mp4"),
        (("run", "generate", "port=6000"), 2, "leave out --address"),
        (("run", "generate", "x"), 2, "KEY=VALUE"),
        (("run", "generate", "--codec", "mp3", "--prompt", "a"), 1, "unknown codec 'mp3'"),
        (("run",), 2, "Missing argument"),
        (("sessions", "get", "nope"), 1, "unknown session 'nope' (NOT_FOUND)"),
        (("jobs", "get", "nope"), 1, "unknown job 'nope' (NOT_FOUND)"),
        (("graphs", "show", "nope"), 1, "unknown graph 'nope'; there are generate"),
    ],
)
def test_wrong_use_gets_one_line_and_the_right_exit_code(riverrun_cli, args, code, says):
    done = riverrun_cli(*args)
    assert done.exit_code == code, done.output
    assert says in " ".join(done.output.replace("│", " ").split())
    assert "Traceback" not in done.output


def test_nobody_there(riverrun_cli, running):
    running.stop()
    done = riverrun_cli("graphs", "ls")
    running.start()
    assert done.exit_code == 1
    assert "no riverrun service answers" in done.stderr


def test_sessions(riverrun_cli, running):
    with running.client() as rr:
        rr.stream("generate", prompt="a")
        listed = json.loads(riverrun_cli("sessions", "ls", "--json").stdout)
        assert [s["session_id"] for s in listed] == ["s0"]
        assert "resume_token" not in listed[0]
        assert "s0" in riverrun_cli("sessions", "ls").stdout
        assert "fake" in riverrun_cli("sessions", "get", "s0").stdout
        assert json.loads(riverrun_cli("sessions", "get", "s0", "--json").stdout)["stages"][0]["model"] == "fake"
        assert "closed" in riverrun_cli("sessions", "close", "s0").stdout
        assert riverrun_cli("sessions", "ls").stdout == "no sessions\n"
        assert "closed" in riverrun_cli("sessions", "ls", "--all").stdout


def test_jobs(riverrun_cli, running, tmp_path):
    options = ("--prompt", "a", "--seconds", "2", "--at", "1:b", "--param", "height=64")
    submitted = riverrun_cli("jobs", "submit", "generate", "--out", str(tmp_path / "a.mp4"), *options)
    assert submitted.stdout == "j0: 32 frames of generate\n"
    assert running.service.submitted.params["height"] == 64
    assert running.service.submitted.controls[0].at_frame == 16
    assert "0/32" in riverrun_cli("jobs", "ls").stdout
    assert json.loads(riverrun_cli("jobs", "get", "j0", "--json").stdout)["state"] == "JOB_STATE_RUNNING"
    watched = riverrun_cli("jobs", "watch", "j0")
    assert watched.exit_code == 0
    assert "succeeded" in watched.stdout
    assert "cancelled" in riverrun_cli("jobs", "cancel", "j0").stdout


def test_models_and_graphs(riverrun_cli, tmp_path):
    assert "fake" in riverrun_cli("models", "ls").stdout
    assert json.loads(riverrun_cli("graphs", "ls", "--json").stdout)[0]["name"] == "generate"
    assert "generate" in riverrun_cli("graphs", "ls").stdout
    assert "fake" in riverrun_cli("graphs", "show", "generate").stdout
    yaml = tmp_path / "g.yaml"
    yaml.write_text("name: g\nstages: {a: {model: fake}}\noutputs: {video: a.video}\n")
    checked = riverrun_cli("graphs", "validate", str(yaml))
    assert checked.exit_code == 1
    assert "stage 'a' has no port 'video'" in checked.stderr
    yaml.write_text("name: g\nstages: {a: {model: other}}\noutputs: {video: a.video}\n")
    assert "unknown model 'other'; there are fake" in riverrun_cli("graphs", "validate", str(yaml)).stderr
    yaml.write_text("name: g\nstagez: {}\n")
    assert "g.yaml" in riverrun_cli("graphs", "validate", str(yaml)).stderr


def test_a_checkpoint_that_is_none(tmp_path):
    done = CliRunner().invoke(app, ["models", "check", str(tmp_path / "nothing.safetensors")])
    assert done.exit_code == 1
    assert done.stderr.startswith("error:")


def test_ctrl_c_keeps_what_came_and_ends_the_session(running, tmp_path):
    film = tmp_path / "a.mp4"
    # Whatever runs in the background is born deaf to SIGINT, and tests may.
    listens = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{listens}; from riverrun.client.cli import main; main()", "run", "generate"]
    command += ["--prompt", "a", "--seconds", "100000", "--out", str(film), "--address", running.address]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "80"})
    running.wait_for(lambda: "video" in running.service.sessions.get("s0", _Nobody).acked)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped" in said
    assert "Traceback" not in said
    assert film.stat().st_size > 0
    assert running.service.sessions["s0"].record.reason == "closed by the client"


class _Nobody:
    acked = ()


def test_version_and_help():
    assert CliRunner().invoke(app, ["--version"]).stdout.strip()
    for group in ("demo", "serve", "run", "sessions", "jobs", "models", "graphs", "doctor"):
        assert CliRunner().invoke(app, [group, "--help"]).exit_code == 0


def test_a_taken_port_is_told_by_us_alone():
    """In a process of its own: gRPC's core reads how much it may say when it is imported."""
    code = """
import asyncio, socket
import riverrun.client.cli, grpc

async def listen(port):
    grpc.aio.server(options=[("grpc.so_reuseport", 0)]).add_insecure_port(f"127.0.0.1:{port}")

with socket.create_server(("127.0.0.1", 0)) as taken:
    try:
        asyncio.run(listen(taken.getsockname()[1]))
    except RuntimeError:
        print("refused")
"""
    without = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=without)
    assert (done.stdout, done.stderr) == ("refused\n", "")


def test_new_tokens_go_into_the_file_as_digests(tmp_path):
    from riverrun.actors.tokens import TokenFile

    file, kept = tmp_path / "tokens.yaml", tmp_path / "wall.token"
    options = ["--tenant", "acme", "--file", str(file)]
    first = CliRunner().invoke(app, ["tokens", "new", "render", "--role", "controller", *options])
    second = CliRunner().invoke(app, ["tokens", "new", "wall", "--role", "viewer", *options, "--out", str(kept)])
    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    tokens = first.stdout.strip(), kept.read_text().strip()
    assert not any(token in file.read_text() + second.output for token in tokens)
    assert [TokenFile(file).find(token).name for token in tokens] == ["render", "wall"]
    assert [path.stat().st_mode & 0o777 for path in (file, kept)] == [0o600, 0o600]
    refused = CliRunner().invoke(app, ["tokens", "new", "x", "--role", "king", *options])
    assert refused.exit_code == 1
    assert "role must be viewer, controller, admin, got 'king'" in refused.stderr
    file.write_text("nonsense")
    assert CliRunner().invoke(app, ["tokens", "new", "x", "--role", "viewer", *options]).exit_code == 1
    assert file.read_text() == "nonsense"


def test_a_command_shows_the_token_of_a_file_or_of_the_environment(running, tmp_path, monkeypatch):
    monkeypatch.setattr("riverrun.client.credentials.Credentials.channel", _no_channel)
    path = tmp_path / "token"
    path.write_text("from-the-file\n")
    monkeypatch.setenv("RIVERRUN_TOKEN", "from-the-environment")
    for options, token in (["--token-file", str(path)], "from-the-file"), ([], "from-the-environment"):
        done = CliRunner().invoke(app, [*options, "sessions", "ls", "--address", running.address])
        assert f"would show {token}" in done.stderr
        assert done.exit_code == 1
    path.write_text("")
    done = CliRunner().invoke(app, ["--token-file", str(path), "sessions", "ls", "--address", running.address])
    assert "holds no token" in done.stderr
    done = CliRunner().invoke(app, ["--cert", str(path), "sessions", "ls", "--address", running.address])
    assert "certificate and its key go together" in done.stderr


def _no_channel(credentials, address, options):
    from riverrun.client.errors import BadRequest

    raise BadRequest(f"would show {credentials.token}", "INVALID_ARGUMENT")
