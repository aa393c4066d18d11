import random

import pytest

from riverrun.models.text.umt5 import load_tokenizer
from riverrun.train.captions import END, PAD, TEXT_LEN, UNKNOWN, build_tokenizer, caption, paraphrase
from riverrun.train.scenes import sample_scene


def words(tokenizer, text):
    return [token for token in tokenizer.encode(text).tokens if token not in (PAD, END)]


def test_captions_pass_through_the_tokenizer_word_by_word():
    tokenizer, rng = build_tokenizer(), random.Random(0)
    for _ in range(200):
        text = caption(sample_scene(rng))
        assert words(tokenizer, text) == text.replace(",", "").split()


def test_paraphrases_name_the_object_and_fit():
    tokenizer, rng = build_tokenizer(), random.Random(1)
    for _ in range(500):
        scene = sample_scene(rng)
        text = paraphrase(scene, rng)
        assert f"{scene.things[0].colour} {scene.things[0].shape}" in text.replace(f"{UNKNOWN} ", "")
        assert len(words(tokenizer, text)) < TEXT_LEN
        assert words(tokenizer, text).count(UNKNOWN) <= 1


@pytest.mark.parametrize(
    ("free", "plain"),
    [
        ("A HUGE crimson Sphere on the beach at midnight!", "a large red ball on the sand at night"),
        ("a tiny violet pyramid, at dusk", "a small purple cone at sunset"),
        ("a big turquoise box on snowy ground by daylight", "a large cyan cube on snow ground by day"),
        ("the camera is orbiting leftwards", "the camera is orbits left"),
        ("a large red ball on green grass at night, the camera orbits left",) * 2,
    ],
)
def test_free_wording_is_folded_onto_known_words(free, plain):
    tokenizer = build_tokenizer()
    assert words(tokenizer, free) == plain.replace(",", "").split()


def test_unknown_words_become_unk_and_long_prompts_are_cut():
    tokenizer = build_tokenizer()
    assert words(tokenizer, "a quick red ball") == ["a", UNKNOWN, "red", "ball"]
    assert words(tokenizer, "12 % §") == []
    assert len(tokenizer.encode("red " * 100).ids) == TEXT_LEN


def test_transformers_reads_the_saved_file(tmp_path):
    tokenizer = build_tokenizer()
    path = tmp_path / "world-tokenizer.json"
    tokenizer.save(str(path))
    text = "a large red ball on grass at night"
    loaded = load_tokenizer(path)
    ids = tokenizer.encode(text).ids
    assert loaded(text)["input_ids"] == ids[: ids.index(1) + 1]
