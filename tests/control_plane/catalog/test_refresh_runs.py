"""Refresh runs in the catalog: the last few are kept, however they end."""

from typing import Any

from sqlalchemy import func, select

from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import TrainingRun


def test_failed_refreshes_do_not_pile_up(cluster: Any, database: Database) -> None:
    current = cluster.domain()["current"]
    trained = cluster.domain_run("trade")["id"]
    body = {
        "uid": "dom-acme-trade",
        "tenant": "acme",
        "specDigest": "refresh-1",
        "spec": {
            "kind": "domain",
            "namespace": "acme",
            "name": "trade",
            "spec": {"baseModel": {"uri": "wheel://base"}, "corpus": [{"uri": "corpus.jsonl"}]},
            "refresh": {"current": current, "cause": "Request"},
        },
    }
    ids = []
    for attempt in range(25):
        ids.append(cluster.internal("POST", "/runs", body | {"attempt": attempt})["id"])
        failure = {"reason": "OOMKilled", "message": "m"}
        cluster.internal("POST", f"/runs/{ids[-1]}/fail", failure)
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(TrainingRun)) == 1 + 20
    for kept in (trained, ids[-1]):
        assert cluster.internal("GET", f"/runs/{kept}")["id"] == kept
