"""The short form: eight faults on a cluster of its own, in a process of its own, and nothing is missed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FAULTS = 8
LIMIT_S = 600
"""Of a busy machine; three minutes of an idle one are plenty."""


@pytest.mark.timeout(LIMIT_S + 60)
def test_eight_faults_cost_no_frame(tmp_path):
    report = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "tests.chaos.run", "--short", f"--faults={FAULTS}", f"--json={report}"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = run.communicate(timeout=LIMIT_S)
    finally:
        run.terminate()  # it ends all it has started
        run.wait(60)
    assert run.returncode == 0, said[-5000:]
    result = json.loads(report.read_text())
    totals = result["totals"]
    assert [totals[what] for what in ("lost", "duplicated", "disordered", "changed", "failures")] == [0, 0, 0, 0, []]
    assert len(result["rows"]) == FAULTS
    assert len({row["kind"] for row in result["rows"]}) == FAULTS
    assert all(row["seconds"] for row in result["rows"])
    assert totals["frames"] > 500
