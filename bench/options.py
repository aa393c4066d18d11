"""What the benchmarks of the service are told on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """quick: fewer and shorter turns. json: the file to write figures to, or None. only: the parts to measure."""

    quick: bool
    json: str | None
    only: tuple[str, ...]


def parsed(name: str, about: str, argv: Sequence[str] | None, parts: Sequence[str] = ()) -> Options:
    """Of `python -m riverrun.bench.NAME`. about: its docstring. parts: what `--only` may name; none: no such option.
    Exits with a line on standard error for what it doesn't know."""
    parser = argparse.ArgumentParser(prog=f"python -m riverrun.bench.{name}", description=about.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine's facts there")
    if parts:
        parser.add_argument("--only", default=",".join(parts), help=f"some of {','.join(parts)}")
    given = parser.parse_args(argv)
    only = tuple(given.only.split(",")) if parts else ()
    if unknown := set(only) - set(parts):
        parser.error(f"--only knows {', '.join(parts)}, not {', '.join(sorted(unknown))}")
    return Options(given.quick, given.json, only)
