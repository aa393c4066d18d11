"""Jacobi decoding writes what one token at a time would, and what it drafts is no worse for being remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from riverrun.models.text.causal_lm import CausalLM
from riverrun.models.text.decoding import Autoregressive, Decoder, TextStream, decode, text_cache
from riverrun.models.text.jacobi import JacobiBlocks, matches
from riverrun.models.text.jacobi_sliding import JacobiSliding
from riverrun.models.text.jacobi_training import PackedPairs, jacobi_losses, nearest_state, noise_schedule
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.packed import Rows, feed
from riverrun.models.text.sampling import SeededChance
from riverrun.models.weights import load_strict
from riverrun.tests.parity.cases import Case

FIXTURES = Path(__file__).parents[1] / "fixtures" / "jacobi_forcing"
MODELS = ("llama_a", "qwen2_a", "qwen3_a")  # trained a little, so that more than one guess is right
TIE = 1e-3
"""Two best logits nearer than this may swap between a draft's forward and a single token's."""

DECODERS: dict[str, Callable[[int], Decoder]] = {
    "block of 2": lambda _: JacobiBlocks(2, 1, pool=0),
    "block": lambda _: JacobiBlocks(16, 1, pool=0),
    "sliding": lambda vocab: JacobiSliding(vocab, 12),
    "two blocks": lambda _: JacobiBlocks(16, 2),
    "four blocks at once": lambda _: JacobiBlocks(8, 4, spawn=0.0, pool=12),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> CausalLM:
    torch.set_num_threads(1)
    case = Case.read(FIXTURES / f"model_{request.param}.json")
    model = CausalLM(LMConfig.read(case.meta["config"])).eval()
    load_strict(model, case.tensors("w/"))
    return model


def prompts(model: CausalLM) -> list[list[int]]:
    """Two periodic strings like those it was trained on, with a wrong token, and one of noise."""
    torch.manual_seed(3)
    noise = torch.randint(0, model.config.vocab_size, (3, 20)).tolist()
    periodic = [(row[:6] * 4)[:20] for row in noise[:2]]
    periodic[0][14] = periodic[1][17] = 7
    return [*periodic, noise[2]]


def stream(model: CausalLM, decoder: Decoder, prompt: list[int], seed: int = 0) -> TextStream:
    return TextStream.start(text_cache(model, 256), SeededChance(seed), decoder, prompt)


def write(model: CausalLM, one: TextStream, count: int) -> int:
    """Forwards it took."""
    forwards = 0
    while len(one.generated) < count and not one.is_ended:
        decode(model, [one])
        forwards += 1
        assert one.cache.cursor <= len(one.ids) - one.decoder.lag
    return forwards


def first_tie(model: CausalLM, prompt: list[int], text: list[int]) -> int:
    """The first position of `text` where plain decoding stood between two tokens; its length if there is none."""
    cache = text_cache(model, 256)
    logits = feed(model, [Rows(cache, prompt + text)])[0][len(prompt) - 1 : -1]
    best = logits.topk(2, dim=-1).values
    near = (best[:, 0] - best[:, 1] < TIE).nonzero()
    return int(near[0]) if len(near) else len(text)


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_is_lossless(model: CausalLM, name: str, record_property: Callable[[str, object], None]) -> None:
    ties = 0
    for number, prompt in enumerate(prompts(model)):
        plain = stream(model, Autoregressive(), prompt)
        write(model, plain, 100)
        drafted = stream(model, DECODERS[name](model.config.vocab_size), prompt, seed=number)
        forwards = write(model, drafted, 100)
        until = first_tie(model, prompt, plain.generated[:100])
        ties += until < 100
        assert drafted.generated[:until] == plain.generated[:until]
        assert forwards <= len(drafted.generated) + 1
    record_property("texts compared only up to a tie", ties)
    assert ties <= 1  # of three texts: else nothing much was tested


def test_tokens_per_forward(model: CausalLM) -> None:
    """The more a strategy keeps, the fewer forwards; and the texts' caches are those of a plain pass."""
    count = Counter[str]()
    for prompt in prompts(model):
        for name in ("block", "two blocks", "four blocks at once"):
            one = stream(model, DECODERS[name](model.config.vocab_size), prompt)
            count[name] += write(model, one, 96)
            clean = text_cache(model, 256)
            feed(model, [Rows(clean, one.ids[: one.cache.cursor])])
            for part in ("k", "v"):
                got, expected = (c.slots(part, 1)[:, : one.cache.cursor] for c in (one.cache, clean))
                torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    assert max(count["four blocks at once"], count["two blocks"]) < count["block"]


def test_strategies_may_change_within_a_text(model: CausalLM) -> None:
    prompt = prompts(model)[0]
    plain = stream(model, Autoregressive(), prompt)
    write(model, plain, 90)
    one = stream(model, JacobiBlocks(16), prompt)
    for make in (DECODERS["sliding"], lambda _: Autoregressive(), DECODERS["block"], DECODERS["two blocks"]):
        write(model, one, len(one.generated) + 15)
        one.follow(make(model.config.vocab_size))
    until = min(first_tie(model, prompt, plain.generated), len(one.generated))
    assert one.generated[:until] == plain.generated[:until]
    assert until > 40


def test_sampled_verification_keeps_the_distribution() -> None:
    """The second token of a text, over 3,000 seeds, against what the model says of it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 6, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = {"model_type": "llama", "num_attention_heads": 2, "max_position_embeddings": 64, **sizes}
    model = CausalLM(LMConfig.read(config)).eval()
    for p in model.parameters():
        p.data.mul_(4) if p.ndim > 1 else None
    decoder = JacobiSliding(6, 4, temperature=0.9)
    pairs = Counter[tuple[int, ...]]()
    for chunk in range(30):
        batch = [
            TextStream.start(text_cache(model, 32), SeededChance(100 * chunk + i), decoder, [1, 2]) for i in range(100)
        ]
        while going := [one for one in batch if len(one.generated) < 2]:
            decode(model, going)
        pairs.update(tuple(one.generated[:2]) for one in batch)
    first = torch.softmax(feed(model, [Rows(text_cache(model, 32), [1, 2], logits=1)])[0][0] / 0.9, -1)
    for a in range(6):
        after = torch.softmax(feed(model, [Rows(text_cache(model, 32), [1, 2, a], logits=1)])[0][0] / 0.9, -1)
        for b in range(6):
            expected = 3000 * float(first[a] * after[b])
            assert abs(pairs[a, b] - expected) < 4.5 * max(expected, 1) ** 0.5, (a, b)


def test_matches() -> None:
    assert matches([5, 1, 2, 3], [1, 2, 9, 4]) == 2
    assert matches([5, 1, 2, 3], [1, 2, 3, 4]) == 3
    assert matches([5], [1]) == 0


def test_a_refused_token_that_is_all_there_is(model: CausalLM) -> None:
    """A draw that keeps giving the refused token ends with the most probable other one."""

    class Stubborn(SeededChance):
        def uniform(self) -> float:
            return 1.0

        def sample(self, probabilities: torch.Tensor) -> int:
            return refused

    one = stream(model, JacobiSliding(model.config.vocab_size, 4, temperature=1.0), [1, 2, 3])
    one.chance = Stubborn(0)
    rows = one.decoder.propose(one)
    refused = rows.ids[1]
    logits = feed(model, [rows])[0]
    one.decoder.accept(one, logits)
    logits[0, refused] = -torch.inf
    assert one.generated == [int(logits[0].argmax())]


def test_training_masks_of_the_other_variants() -> None:
    """Windows of two blocks: states see the fixed points of earlier windows and the states of their own."""
    packed = PackedPairs.of([1], [([2], [3])] * 4)
    seen = packed.mask(window=2)
    states, finals = packed.blocks[:, 0, 0], packed.blocks[:, 1, 0]
    assert seen[states][:, states].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert seen[states][:, finals].int().tolist() == [[0] * 4, [0] * 4, [1, 1, 0, 0], [1, 1, 0, 0]]
    single = packed.mask(window=1)
    assert torch.equal(single[states][:, states], torch.eye(4, dtype=torch.bool))
    assert torch.equal(single[states][:, finals], torch.ones(4, 4, dtype=torch.bool).tril(-1))
    for mask in (seen, single, packed.mask()):
        assert torch.equal(mask[finals][:, finals], torch.ones(4, 4, dtype=torch.bool).tril())
        assert not mask[finals][:, states].any()


def test_losses_of_blocks_already_settled() -> None:
    packed = PackedPairs.of([1, 2], [([3, 4], [3, 4])])
    losses = jacobi_losses(torch.randn(6, 9, requires_grad=True), packed, eos=8, pad=0)
    assert losses.consistency.item() == 0
    losses.total.backward()
    with pytest.raises(ValueError, match="don't make 7 tokens"):
        PackedPairs(torch.arange(7), 2, 2)


def test_the_nearest_state() -> None:
    trajectory = [[9, 9, 9, 9], [1, 9, 9, 9], [1, 2, 9, 4], [1, 2, 3, 4]]
    assert [nearest_state(trajectory, noise) for noise in noise_schedule(5)] == [3, 2, 2, 1, 0]
