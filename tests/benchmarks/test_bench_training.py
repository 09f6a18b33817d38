"""The training benchmark: every kind of step is timed in both precisions, and the report is complete."""

import json
from pathlib import Path

from hmi_bench.training import run_training


def test_the_report_has_every_step_in_both_precisions(tmp_path: Path) -> None:
    table = run_training(tmp_path, base_name="tiny", rounds=2)
    steps = json.loads((tmp_path / "training.json").read_text())["steps"]
    assert [step["step"] for step in steps] == [
        "distillation of a Domain",
        "teacher",
        "adapter, compressed",
        "adapter, direct LoRA",
        "adapter, bottleneck",
    ]
    assert all(min(step["float32"], step["bfloat16"], step["ratio"]) > 0 for step in steps)
    assert len(table.splitlines()) == 2 + len(steps)
