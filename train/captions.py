"""Captions of scenes, and the word-level tokenizer that reads them and freer wording of the same.

The tokenizer first lowers the case, drops punctuation and turns synonyms ("sphere", "crimson", "dusk") into the words
the text encoder was trained on; any other word becomes <unk>, which training sprinkles over captions too.
"""

from __future__ import annotations

import random

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from riverrun.train.scenes import FLOORS, MOTIONS, OBJECT_COLOURS, SHAPES, SIZES, SKIES, Scene

TEXT_LEN = 32
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"

SYNONYMS: dict[str, str] = {
    "ball": "sphere balls orb globe",
    "cube": "box cubes block boxes crate dice",
    "pillar": "column cylinder pillars tower post",
    "cone": "pyramid cones tent spike",
    "large": "big huge giant enormous great tall",
    "small": "little tiny mini",
    "red": "crimson scarlet ruby",
    "orange": "amber tangerine",
    "yellow": "golden gold lemon",
    "green": "emerald lime",
    "cyan": "turquoise teal aqua",
    "blue": "navy azure sapphire",
    "purple": "violet magenta",
    "grass": "meadow lawn grassland field grassy",
    "sand": "beach desert dunes sandy",
    "snow": "ice snowy snowfield",
    "stone": "rock rocks concrete pavement cobblestone",
    "grey": "gray",
    "day": "daytime daylight noon midday sunny sunlight morning",
    "sunset": "dusk evening dawn sunrise twilight",
    "night": "midnight nighttime moonlight darkness",
    "orbits": "orbit orbiting circles circle circling rotates rotating turns turning",
    "still": "static stationary motionless fixed steady",
    "moves": "moving move goes glides",
    "stays": "stands rests remains",
    "in": "inwards forward",
    "out": "outwards backward",
    "up": "upwards rises",
    "down": "downwards sinks falls",
    "left": "leftwards",
    "right": "rightwards",
}
FILLERS = (
    "a an the on at by during under and to around it is of with over its while from there camera orbits "
    "stays still moves in out up down left right zooms view film video picture showing standing white "
    "grey pale blue pink sky light floor ground "
)

CAMERA_CLAUSES: dict[str, tuple[str, ...]] = {
    "still": ("the camera stays still", "still camera", "the camera is still"),
    "orbit left": ("the camera orbits left", "the camera orbits to the left", "camera moves left around it"),
    "orbit right": ("the camera orbits right", "the camera orbits to the right", "camera moves right around it"),
    "in and out": ("the camera moves in and out", "the camera zooms in and out"),
    "up and down": ("the camera moves up and down", "camera moves up and down"),
}
FLOOR_ADJECTIVES = {"grass": "green", "sand": "yellow", "snow": "white", "stone": "grey"}
SKY_CLAUSES: dict[str, tuple[str, ...]] = {
    "day": ("by day", "during the day", "at day", "under a blue sky by day"),
    "sunset": ("at sunset", "by sunset light", "under a pink sky at sunset"),
    "night": ("at night", "by night", "during the night"),
}


def caption(scene: Scene) -> str:
    """The plain caption: "a large red ball on grass at night, the camera orbits left"."""
    things = " and ".join(f"a {thing.size} {thing.colour} {thing.shape}" for thing in scene.things)
    sky = SKY_CLAUSES[scene.sky][0]
    return f"{things} on {scene.floor} {sky}, {CAMERA_CLAUSES[scene.camera.motion][0]}"


def paraphrase(scene: Scene, rng: random.Random) -> str:
    """The same in other words and order; now and then a clause is left out or an unknown word stands in it."""
    things = " and ".join(_thing(t.size, t.colour, t.shape, rng) for t in scene.things)
    adjective = f"{FLOOR_ADJECTIVES[scene.floor]} " if rng.random() < 0.3 else ""
    floor = rng.choice(("on", "on", "on the", "standing on", "over")) + f" {adjective}{scene.floor}"
    sky = rng.choice(SKY_CLAUSES[scene.sky])
    clauses = [c for c in ([floor, sky] if rng.random() < 0.7 else [sky, floor]) if rng.random() > 0.05]
    camera = rng.choice(CAMERA_CLAUSES[scene.camera.motion])
    if rng.random() < 0.15:
        text = " ".join([camera, *(["around"] if rng.random() < 0.5 else []), things, *clauses])
    elif rng.random() < 0.15:
        text = " ".join([*clauses, things, camera])
    else:
        text = " ".join([things, *clauses, *([camera] if rng.random() > 0.05 else [])])
    words = text.split()
    if rng.random() < 0.25:
        words.insert(rng.randint(0, len(words)), UNKNOWN)
    return " ".join(words)


def build_tokenizer() -> Tokenizer:
    """Word level, synonyms folded, </s> appended, padded and cut to TEXT_LEN ids. Ids: 0 pad, 1 end, 2 unknown."""
    motions = " ".join(MOTIONS).split()
    words = [*OBJECT_COLOURS, *SHAPES, *SIZES, *FLOORS, *SKIES, *motions, *FILLERS.split()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([PAD, END, UNKNOWN, *words]))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    folds = [Replace(Regex(rf"\b({'|'.join(s.split())})\b"), word) for word, s in SYNONYMS.items()]
    tokenizer.normalizer = Sequence([Lowercase(), Replace(Regex(r"[^a-z<>/ ]+"), " "), *folds])
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, vocabulary[END])])
    tokenizer.enable_truncation(TEXT_LEN)
    tokenizer.enable_padding(pad_id=vocabulary[PAD], pad_token=PAD, length=TEXT_LEN)
    return tokenizer


def _thing(size: str, colour: str, shape: str, rng: random.Random) -> str:
    size = f"{size} " if rng.random() > 0.05 else ""
    return f"{rng.choice(('a', 'a', 'the', ''))} {size}{colour} {shape}".strip()
