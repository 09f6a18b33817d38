"""``scripts/images`` with a program that builds for minutes and says little."""

import os
import subprocess
from pathlib import Path

import pytest
from rendered_chart import ROOT

BUILDS = """#!/usr/bin/env bash
if [ "$1" = build ]; then
  echo "STEP 1/9: FROM python"
  until [ -e "$RELEASE" ]; do read -rt 0.05 <> <(:) || true; done
  [ "$(cat "$RELEASE")" = fine ] || { echo "no space left"; exit 3; }
fi
"""


@pytest.mark.parametrize(("end", "status"), [("fine", 0), ("broken", 3)])
def test_a_quiet_build_is_reported_while_it_runs(tmp_path: Path, end: str, status: int) -> None:
    program, release = tmp_path / "cluster", tmp_path / "release"
    program.write_text(BUILDS)
    program.chmod(0o755)
    environment = os.environ | {
        "CLUSTER": str(program),
        "RELEASE": str(release),
        "PROGRESS_SECONDS": "1",
        "KUBECONFIG": str(tmp_path / "none"),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    command = [ROOT / "scripts" / "images", "control-plane"]
    lines = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as script:
        assert script.stdout is not None
        for line in script.stdout:
            lines.append(line.strip())
            if "STEP 1/9" in line and not release.exists():
                release.write_text(end)
    assert script.returncode == status
    output = "\n".join(lines)
    assert lines[0].startswith("[1/1] hmi-control-plane:")
    assert "building hmi-control-plane:" in lines[1]
    assert ("done in" in output) is (status == 0)
    assert ("no space left" in output) is (status != 0)
