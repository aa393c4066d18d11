"""Turns by what each tenant has had lately."""

import pytest

from riverrun.cluster.fair import HALF_S, Used


@pytest.mark.parametrize(
    ("steps", "tenants", "least"),
    [
        ([], "ab", "a"),  # nobody has had anything: by name
        ([(0.0, "a", 40.0)], "ab", "b"),
        ([(0.0, "a", 40.0), (0.0, "b", 50.0)], "ab", "a"),
        ([(0.0, "aab", 60.0)], "ab", "b"),  # two sessions have twice the part of one
        ([(0.0, "a", 40.0), (2 * HALF_S, "b", 20.0)], "ab", "a"),  # long ago: it counts a quarter
        ([(0.0, "a", 40.0)], "a", "a"),
    ],
)
def test_the_least_served(steps, tenants, least):
    used = Used()
    for at, members, took in steps:
        used = used.after(at, list(members), took)
    assert used.least(tenants) == least


def test_what_is_long_ago_is_forgotten():
    used = Used().after(0.0, ["a"], 40.0).after(100 * HALF_S, ["b"], 1.0)
    assert dict(used.ms) == {"b": 1.0}


def test_turns_are_fair_whatever_each_asks_for():
    """One tenant has twelve sessions that are always ready, the other one: each gets half while both ask."""
    used, turns = Used(), {"greedy": 0, "modest": 0}
    for step in range(1000):
        tenant = used.least(["greedy", "modest"])
        turns[tenant] += 1
        used = used.after(step * 0.04, [tenant], 40.0)
    assert turns == {"greedy": 500, "modest": 500}
