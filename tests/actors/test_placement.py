"""Placement: the actor with most room."""

import pytest

from riverrun.cluster.placement import Load, least_loaded


@pytest.mark.parametrize(
    ("loads", "chosen"),
    [
        ([], None),
        ([Load("a", 2, 2, 0)], None),
        ([Load("a", 2, 2, 0), Load("b", 1, 2, 9)], "b"),
        ([Load("a", 3, 8, 0), Load("b", 0, 4, 0)], "a"),
        ([Load("a", 1, 2, 9), Load("b", 1, 2, 3)], "b"),
        ([Load("b", 1, 2, 3), Load("a", 1, 2, 3)], "a"),
    ],
)
def test_least_loaded(loads, chosen):
    assert least_loaded(loads) == chosen
