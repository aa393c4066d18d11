"""Credits add up whatever happens, in whatever order."""

import random

import pytest

from riverrun.client.ledger import Ledger, LedgerError


@pytest.mark.parametrize("seed", range(20))
def test_credits_add_up_under_random_events(seed):
    rng = random.Random(seed)
    ledger = Ledger("video", window=rng.randint(1, 30))
    granted = ledger.connect()
    received, taken = -1, -1
    for _ in range(500):
        event = rng.random()
        if event < 0.45 and granted:
            again = received >= 0 and rng.random() < 0.1
            assert ledger.receive(received if again else received + 1) is not again
            granted -= 1
            received += not again
        elif event < 0.9 and taken < received:
            taken += 1
            ledger.take(taken)
            granted += ledger.refill()
        elif event > 0.98:
            granted = ledger.connect()
        ledger.check()
        assert ledger.credits == granted
        assert ledger.buffered == received - taken


def test_a_consumer_that_takes_everything_is_never_left_without_credit():
    for window in range(1, 40):
        ledger = Ledger("video", window)
        ledger.connect()
        for frame in range(3 * window):
            assert ledger.credits >= 1
            ledger.receive(frame)
            ledger.take(frame)
            ledger.refill()


def test_what_breaks_the_contract_is_refused():
    ledger = Ledger("video", window=2)
    with pytest.raises(LedgerError, match="without credit"):
        ledger.receive(0)
    ledger.connect()
    ledger.receive(5)  # a controller that attached later begins anywhere
    with pytest.raises(LedgerError, match="came after 5: frames are lost"):
        ledger.receive(7)


def test_a_viewer_may_miss_frames():
    ledger = Ledger("video", window=2, lossless=False)
    ledger.connect()
    assert ledger.receive(5)
    assert ledger.receive(9)


def test_check_finds_what_does_not_add_up():
    ledger = Ledger("video", window=2)
    with pytest.raises(AssertionError, match=r"\(0, 0, 0\) of window 2"):
        ledger.check()
