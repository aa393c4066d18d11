"""From a configuration to a model, in the tree and outside; the encoder's cache; what counts as hung."""

import dataclasses

import numpy as np
import pytest

from riverrun.actors.controller import is_hung
from riverrun.actors.encoder import EmbeddingCache
from riverrun.actors.health import StageHealth
from riverrun.actors.loading import build, carried
from riverrun.configs import ModelConfig, load_model
from riverrun.models.base import BadRequest, Corrupt, StreamModel

MINE = """
from riverrun.models.synthetic import Synthetic

class Mine(Synthetic):
    def __init__(self, path):
        self.path = path
"""


def test_a_model_from_outside_the_tree(tmp_path):
    (tmp_path / "minepkg").mkdir()
    (tmp_path / "minepkg" / "mod.py").write_text(MINE)
    text = "name: mine\nclass: minepkg.mod:Mine\nstage: generation\nargs: {path: 'package:weights/x.bin'}\n"
    (tmp_path / "mine.yaml").write_text(text)
    model = build(load_model(str(tmp_path / "mine.yaml")))
    assert model.path.endswith("/weights/x.bin")
    assert not model.path.startswith("package:")
    assert isinstance(model, StreamModel)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_path": "riverrun.nowhere:X"}, "can't import 'riverrun.nowhere:X'"),
        ({"class_path": "riverrun.models.synthetic:X"}, "has no attribute 'X'"),
        ({"class_path": "builtins:dict"}, "is no riverrun.models.base.StreamModel"),
        ({"class_path": "builtins:dict", "stage": "encoder"}, "has no method 'encode'"),
        ({"args": {"deep": 1}}, "takes no arguments"),
    ],
)
def test_what_is_wrong_is_said(change, words):
    right = ModelConfig(name="m", class_path="riverrun.models.synthetic:Synthetic", stage="generation")
    with pytest.raises(BadRequest, match=words):
        build(dataclasses.replace(right, **change))


def test_foreign_errors_become_corrupt():
    @carried
    def broken():
        raise KeyError("x")

    with pytest.raises(Corrupt, match="broken failed: KeyError: 'x'"):
        broken()


def test_the_encoders_cache_is_bounded():
    asked = []

    def encode(text):
        asked.append(text)
        return np.zeros(10, np.float32)

    cache = EmbeddingCache(encode, max_bytes=100)
    for text in ["a", "b", "a", "c", "a", "b"]:
        cache.get(text)
    assert asked == ["a", "b", "c", "b"]
    assert cache.nbytes == 80
    with pytest.raises(BadRequest, match="prompt is empty"):
        cache.get("  ")
    with pytest.raises(BadRequest, match="prompt must be a text, got 3"):
        cache.get(3)


@pytest.mark.parametrize(
    ("steps", "running_s", "p99_ms", "hung"),
    [(0, 999, 0, False), (5, 29, 1, False), (5, 31, 1, True), (5, 31, 2000, False), (5, 41, 2000, True)],
)
def test_hung(steps, running_s, p99_ms, hung):
    assert is_hung(StageHealth("i", 1, 1, 0, 0, steps, running_s, p99_ms), 30.0) == hung
