"""The refresh benchmark, on tables of a few hundred windows."""

import json
from pathlib import Path

from hmi_bench.refresh import SHARES_IN, RefreshPlan, run_refresh


def test_a_refresh_follows_a_topic_that_shifts(tmp_path: Path) -> None:
    report = run_refresh(tmp_path, RefreshPlan(base="tiny", windows=300, max_entries=3_000))
    found = json.loads((tmp_path / "refresh.json").read_text())
    assert [cost["windows_in"] for cost in found["costs"]] == [round(300 * share) for share in SHARES_IN]
    shift = found["shift"]
    assert shift["after_shift"] < shift["old_topic"]
    assert shift["after_shift"] < shift["after_refresh"]
    assert shift["backoff_after_shift"] < shift["backoff_after_refresh"]
    assert f"{shift['after_refresh']:.1%}" in report
