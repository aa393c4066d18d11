"""Which sessions fit an actor together, and what is said where one does not."""

import pytest

from riverrun.cluster.admission import Need, Room

SMALL, MIDDLE, BIG = Need(1_000_000, 3_000_000), Need(4_000_000, 4_000_000), Need(5_000_000, 9_000_000)


@pytest.mark.parametrize(
    ("needs", "batch", "reserved"),
    [
        ([], 2, 0),
        ([SMALL], 1, 3_000_000),
        ([SMALL] * 3, 1, 5_000_000),  # one steps, three keep
        ([SMALL] * 3, 2, 7_000_000),
        ([SMALL] * 3, None, 9_000_000),
        ([SMALL, BIG, SMALL], 1, 11_000_000),  # whichever needs most may be the one
        ([MIDDLE, Need(2, 1)], 2, 4_000_002),  # a peak below what is kept counts as that
    ],
)
def test_reserved(needs: list[Need], batch: int | None, reserved: int) -> None:
    assert Room(9, None, batch).reserved(needs) == reserved


@pytest.mark.parametrize(
    ("need", "budget", "batch", "places", "count"),
    [
        (SMALL, 8_000_000, 1, 9, 6),
        (SMALL, 8_000_000, 9, 9, 2),
        (SMALL, 8_000_000, 1, 4, 4),
        (SMALL, None, 1, 4, 4),
        (BIG, 8_000_000, 1, 4, 0),
        (Need(0, 0), 0, 1, 4, 4),
    ],
)
def test_fitting_is_what_is_admitted_one_after_another(
    need: Need, budget: int | None, batch: int, places: int, count: int
) -> None:
    room, here = Room(places, budget, batch), list[Need]()
    assert room.fitting(need) == count
    while room.refusal(here, need, usual=None) is None:
        here.append(need)
    assert len(here) == count


@pytest.mark.parametrize(
    ("here", "wanted", "usual", "line"),
    [
        ([SMALL] * 9, SMALL, None, "all 9 places are taken; one must end first"),
        ([MIDDLE], BIG, None, "a session needs 9.0 MB, 4.0 of 8.0 MB are free; smaller parameters would fit"),
        (
            [MIDDLE],
            BIG,
            SMALL,
            "a session needs 9.0 MB, 4.0 of 8.0 MB are free; "
            "smaller parameters would fit: 3.0 MB with the default ones",
        ),
        (
            [MIDDLE, SMALL],
            MIDDLE,
            MIDDLE,
            "a session needs 4.0 MB, 1.0 of 8.0 MB are free; one must end first, 2 of this size fit at once",
        ),
        ([MIDDLE], MIDDLE, SMALL, None),
    ],
)
def test_what_would_fit_is_said(here: list[Need], wanted: Need, usual: Need | None, line: str | None) -> None:
    assert Room(9, 8_000_000, 1).refusal(here, wanted, usual) == line
