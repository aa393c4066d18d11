"""What docs/your_model.md shows is run as it stands: the model, its YAML, the service and the client."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import riverrun

PAGE = (Path(riverrun.__file__).parent / "docs" / "your_model.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.S)
YAML = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The page's files in a folder of their own, the working directory."""
    (tmp_path / "waves.py").write_text(PYTHON[0])
    for name, text in zip(("waves.yaml", "wavy.yaml", "service.yaml"), YAML, strict=True):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def waves(folder):
    spec = importlib.util.spec_from_file_location("waves", folder / "waves.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["waves"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["waves"]


def test_the_example_is_short():
    assert len(PYTHON[0].splitlines()) <= 60


def test_a_restored_state_goes_on_equally(waves):
    model = waves.Waves(chunk=4)
    params = waves.WavesParams(speed=1.5)
    state = model.open(params, seed=3)
    model.step([state])
    again = model.restore(params, state.snapshot())
    for _ in range(3):
        ((one,),), ((other,),) = model.step([state]), model.step([again])
        np.testing.assert_array_equal(one.data, other.data)
        assert one.pts == other.pts


def test_the_page_works_as_it_stands(folder, ray_cluster, monkeypatch, capsys):
    with riverrun.serve("service.yaml", ["port=0", "drain_s=1"]) as rr:
        monkeypatch.setenv("RIVERRUN_ADDRESS", rr.address)
        exec(compile(PYTHON[1], "docs/your_model.md", "exec"), {})
        assert re.search(r"slower from frame \d+", capsys.readouterr().out)
        frames = list(rr.stream("wavy", frames=20, speed=2.0, side=32))
        with pytest.raises(riverrun.BadRequest, match="unknown parameter 'sped'; there are side, speed"):
            rr.stream("wavy", sped=2.0)
    assert [frame.number for frame in frames] == list(range(20))
    assert frames[0].array.shape == (32, 32, 3)
    assert (frames[0].array[:, 0, 0] != frames[1].array[:, 0, 0]).any()


def test_the_command_line_works_as_the_page_says(folder, ray_cluster):
    from typer.testing import CliRunner

    from riverrun.client.cli import app

    (command,) = re.findall(r"`riverrun (run wavy [^`]*)`", PAGE)
    done = CliRunner().invoke(app, [*command.split(), "--frames", "24"])
    assert done.exit_code == 0, done.output
    assert (folder / "waves.mp4").stat().st_size > 0
