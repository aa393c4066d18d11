"""Everything that docs/errors.md says a client may send wrongly: its code and line, while a neighbour streams."""

import re
from pathlib import Path

import pytest

import riverrun
from riverrun.models.base import MAX_LINE

from .bad_input import CASES
from .wrong_model import Neighbour

DOCS = Path(riverrun.__file__).parent / "docs" / "errors.md"
ROW = re.compile(r"^\| (?P<what>[^|]+?) +\| `(?P<code>[A-Z_]+)` +\| `+(?P<line>.+?)`+ +\|$", re.MULTILINE)


def table() -> list[tuple[str, str, str]]:
    """(what is sent, code, line) of every row; `…` in a line stands for anything."""
    return [(row["what"], row["code"], row["line"].replace(r"\|", "|")) for row in ROW.finditer(DOCS.read_text())]


@pytest.fixture(scope="module")
def neighbour(stubs):
    other = Neighbour(stubs)
    other.goes_on()
    yield other
    other.leave()


def test_the_page_and_the_tests_say_the_same():
    assert [what for what, _, _ in table()] == list(CASES)


@pytest.mark.parametrize(("what", "code", "line"), [pytest.param(*row, id=row[0]) for row in table()])
def test_what_is_wrong_is_refused_in_one_line_and_spares_the_neighbour(stubs, neighbour, what, code, line):
    got, said = CASES[what](stubs)
    neighbour.goes_on()
    wanted = ".+".join(re.escape(part) for part in line.split("…"))
    assert (got, bool(re.fullmatch(wanted, said))) == (code, True), said
    assert len(said) <= MAX_LINE
