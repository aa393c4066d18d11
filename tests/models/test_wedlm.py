"""WeDLM: what is committed has clean keys, masks see what lies behind them, and the text follows the thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from riverrun.models.text.causal_lm import CausalLM, WholeMemory
from riverrun.models.text.decoding import Autoregressive, TextStream, decode, text_cache
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.packed import Rows, feed
from riverrun.models.text.sampling import SeededChance, entropy, filtered
from riverrun.models.text.wedlm import WeDLM, choose, filled_first, generate_blocks, uncertainty
from riverrun.models.text.wedlm_training import IGNORED, MaskedBatch, MaskedSample, wedlm_losses
from riverrun.models.weights import load_strict
from riverrun.tests.parity.cases import Case

FIXTURES = Path(__file__).parents[1] / "fixtures" / "wedlm"
MASK = {"qwen2_b": 199, "qwen3_b": 219}


@pytest.fixture(scope="module", params=MASK)
def model(request: pytest.FixtureRequest) -> CausalLM:
    torch.set_num_threads(1)
    case = Case.read(FIXTURES / f"model_{request.param}.json")
    model = CausalLM(LMConfig.read(case.meta["config"] | {"mask_token_id": MASK[request.param]})).eval()
    load_strict(model, case.tensors("w/"))
    return model


def start(model: CausalLM, seed: int = 0, **options: Any) -> TextStream:
    torch.manual_seed(seed)
    prompt = (torch.randint(0, 60, (6,)).tolist() * 4)[:20]
    mask = model.config.mask_token_id
    assert mask is not None
    decoder = WeDLM(mask, **({"temperature": 0.0} | options))
    return TextStream.start(text_cache(model, 256), SeededChance(seed), decoder, prompt)


def write(model: CausalLM, stream: TextStream, count: int) -> int:
    """Forwards it took."""
    forwards = 0
    while len(stream.generated) < count and not stream.is_ended:
        decode(model, [stream])
        forwards += 1
        assert stream.cache.cursor == len(stream.ids)
        assert len(stream.work.window) == stream.decoder.window  # type: ignore[attr-defined]
    return forwards


@pytest.mark.parametrize("options", [{}, {"threshold": None}, {"threshold": 3.0, "temperature": 0.7}, {"window": 3}])
def test_committed_keys_are_those_of_a_plain_pass(model: CausalLM, options: dict[str, Any]) -> None:
    stream = start(model, **options)
    write(model, stream, 60)
    clean = text_cache(model, 256)
    feed(model, [Rows(clean, stream.ids)])
    for layer in range(clean.spec.layers):
        for part in ("k", "v"):
            got, expected = (c.slots(part, layer)[:, : len(stream.ids)] for c in (stream.cache, clean))
            torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_plain_decoding_goes_on_where_it_stopped(model: CausalLM) -> None:
    stream = start(model)
    write(model, stream, 10)
    stream.follow(Autoregressive())
    text = list(stream.ids)
    for token in [decode(model, [stream])[0] for _ in range(5)]:
        whole = model(torch.tensor([text]), WholeMemory(model.config.rotary, torch.arange(len(text))))
        assert token == [int(whole[0, -1].argmax())]
        text += token


def test_a_higher_threshold_takes_fewer_forwards(model: CausalLM) -> None:
    one = write(model, start(model, threshold=None), 48)
    low, high = (write(model, start(model, threshold=threshold), 48) for threshold in (0.3, 3.0))
    assert one >= 48
    assert high < low <= one
    assert high <= 8  # a window of 16 filled at once, two forwards each


def test_the_first_forward_commits_nothing(model: CausalLM) -> None:
    stream = start(model, threshold=10.0)
    assert decode(model, [stream]) == [[]]
    assert None not in stream.work.window
    rows = stream.decoder.propose(stream)
    assert len(rows.ids) == 32 == stream.decoder.reach
    assert rows.logits == 16


def test_masks_see_tokens_behind_them(model: CausalLM) -> None:
    """A mask's prediction changes with a token to its right, a filled prefix's key doesn't."""
    stream = start(model, window=4)
    decode(model, [stream])
    seen = []
    for token in (3, 17):
        stream.work.window = [None, None, token, None]
        rows = stream.decoder.propose(stream)
        assert list(rows.ids) == [token, *[model.config.mask_token_id] * 3]
        start_at = len(stream.ids)
        assert list(rows.positions or ()) == [start_at + 2, start_at, start_at + 1, start_at + 3]
        seen.append(feed(model, [rows])[0])
        stream.settle()
    assert not torch.allclose(seen[0][0], seen[1][0], atol=1e-3)


def test_a_stop_behind_a_mask_stops_nothing(model: CausalLM) -> None:
    stream = start(model, window=4, stop_ids=frozenset([5]))
    decode(model, [stream])
    stream.work.window = [7, None, 5, None]
    decode(model, [stream])
    assert stream.generated == [7]
    assert not stream.is_ended
    stream.work.window = [8, 9, 5, 11]
    decode(model, [stream])
    assert stream.generated == [7, 8, 9, 5]
    assert stream.is_ended


def test_the_mask_is_never_written(model: CausalLM) -> None:
    """Also where it is the likeliest token (the official code would write it)."""
    stream = start(model, window=3, threshold=None)
    stream.decoder.propose(stream)
    logits = torch.zeros(3, model.config.vocab_size)
    logits[:, model.config.mask_token_id] = 50
    logits[:, 4] = 1
    feed(model, [Rows(stream.cache, [1, 1, 1])])
    stream.decoder.accept(stream, logits)
    assert stream.work.window == [4, None, None]


def test_choices() -> None:
    assert filled_first([None, 4, None, 6]) == [1, 3, 0, 2]
    assert choose(torch.tensor([0.5, 0.2, 0.2]), None) == [1]
    assert choose(torch.tensor([0.5, 0.2, 0.2]), 0.2) == [1]  # strictly below
    assert choose(torch.tensor([0.5, 0.2, 0.3]), 0.4) == [1, 2]
    even = uncertainty(torch.zeros(2, 8), [3, 7], distance=0.5)
    torch.testing.assert_close(even, torch.tensor([2.0794415, 2.0794415 + 2.0]))


def test_filters() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    assert filtered(logits, top_k=3).isfinite().tolist() == [[True, True, True, True]]  # a tie for the third place
    assert filtered(logits, top_k=2).isfinite().tolist() == [[True, True, False, False]]
    assert filtered(logits, top_p=0.6).isfinite().tolist() == [[True, True, False, False]]
    assert filtered(logits, top_p=0.01).isfinite().tolist() == [[True, False, False, False]]
    torch.testing.assert_close(entropy(filtered(logits, top_k=2)), torch.tensor([0.6365142]))


def test_block_decoder_without_a_threshold_fills_one_a_pass(model: CausalLM) -> None:
    mask = model.config.mask_token_id or 0
    ids, steps = generate_blocks(model, [1, 2, 3], 7, mask_id=mask, block=4, confidence=0.0)
    assert (len(ids), steps) == (10, [1] * 7)


def test_drawn_masks() -> None:
    """Prompts are never masked; each block has the share it drew; two streams, one order."""
    labels = torch.arange(40)
    labels[:9] = IGNORED
    sample = MaskedSample.draw(torch.arange(40), labels, 8, torch.Generator().manual_seed(1))
    assert not sample.masked[:9].any()
    for start_at in range(0, 40, 8):
        block = slice(start_at, start_at + 8)
        count = int((labels[block] != IGNORED).sum())
        assert int(sample.masked[block].sum()) == round(count * float(sample.ratio[block][0]))
    batch = MaskedBatch.of([sample, sample], 8, mask_id=99)
    assert (batch.ids == 99).equal(batch.masked)
    assert sorted(batch.positions[40:80].tolist()) == list(range(40))
    assert not batch.mask()[:80, 80:].any()
    assert not batch.mask()[80:, :80].any()
    clean = torch.ones(40, 40, dtype=torch.bool).tril()
    assert torch.equal(batch.mask()[:40, :40], clean)
    assert not batch.mask()[:40, 40:80].any()


def test_losses_are_weighted_by_what_was_to_be_masked() -> None:
    """A block of which a tenth was masked counts ten times one that was masked whole."""
    ids = torch.tensor([0, 1, 2, 3])
    sample = MaskedSample(ids, ids, torch.tensor([True, False, True, True]), torch.tensor([0.1, 0.1, 1.0, 1.0]))
    batch = MaskedBatch.of([sample], 2, mask_id=4)
    logits = torch.zeros(8, 5)
    logits[batch.masked.nonzero()[0], 0] = 3.0  # the first mask is right
    losses = wedlm_losses(logits, batch, ar_weight=0.0)
    even, right = torch.tensor(5.0).log(), torch.logsumexp(torch.tensor([3.0, 0, 0, 0, 0]), 0) - 3
    torch.testing.assert_close(losses.masked, (10 * right + 2 * even) / 12)
    torch.testing.assert_close(losses.plain, (right + 2 * even) / 3)
    torch.testing.assert_close(losses.total, losses.masked)
