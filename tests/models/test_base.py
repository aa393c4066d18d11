"""Parameters as clients send them: typed, and one line for what is wrong."""

from dataclasses import dataclass

import pytest

from riverrun.models.base import BadRequest, parse_params


@dataclass(frozen=True)
class Params:
    height: int | None = None
    scale: int | float = 1


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"height": "tall"}, "parameter 'height' must be int, got 'tall'"),
        ({"scale": "big"}, "parameter 'scale' must be int or float, got 'big'"),
        ({"scale": None}, "parameter 'scale' must be int or float, got None"),
    ],
)
def test_what_a_parameter_must_be_is_said_without_none(values, line):
    with pytest.raises(BadRequest) as caught:
        parse_params(Params, values)
    assert str(caught.value) == line


def test_a_parameter_with_none_takes_none():
    assert parse_params(Params, {"height": None, "scale": 2.5}) == Params(None, 2.5)
    assert parse_params(Params, {"height": 64.0}) == Params(64)
