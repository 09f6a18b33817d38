"""The gateway benchmark with a real control plane process and few requests."""

import json
from pathlib import Path

from hmi_bench.gateway.benchmark import run_gateway


def test_it_compares_requests_through_the_gateway_with_direct_ones(tmp_path: Path) -> None:
    table = run_gateway(tmp_path, requests=5, rates=(50.0,))
    assert "| 50/s |" in table
    idle, steady = json.loads((tmp_path / "gateway.json").read_text())["measured"]
    assert (idle["rate"], steady["rate"]) == (0.0, 50.0)
    assert 0 < idle["direct_p50"] < idle["through_p50"]
    assert "CPU ms a request" in table
    assert "Syncing a request's usage" in table
