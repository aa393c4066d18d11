"""Draws that are functions of seed and number, and distributions."""

from __future__ import annotations

from collections import Counter

import torch

from riverrun.models.text.sampling import SeededChance


def test_draws_are_a_function_of_seed_and_number() -> None:
    a, b = SeededChance(7), SeededChance(7)
    first = (a.pick(range(50), 20), a.uniform(), a.sample(torch.ones(9)))
    a.drawn = 0
    assert (a.pick(range(50), 20), a.uniform(), a.sample(torch.ones(9))) == first
    b.drawn = 1
    assert b.uniform() == first[1]
    assert SeededChance(8).uniform() != SeededChance(7).uniform()
    assert a.pick([], 0) == []
    assert a.drawn == 3  # drawing nothing is no draw


def test_samples_follow_their_shares() -> None:
    chance, shares = SeededChance(1), torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    count = Counter(chance.sample(shares) for _ in range(4000))
    assert set(count) == {1, 3, 4}
    for token in count:
        assert abs(count[token] / 4000 - float(shares[token])) < 0.03
    assert {token for _ in range(400) for token in chance.pick([4, 9], 2)} == {4, 9}
