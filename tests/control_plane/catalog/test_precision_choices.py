"""What administrators see of the precision of runtimes, and how they have it measured again."""

from typing import Any

import pytest

KEY = {"pool": "cpu", "requested": "auto", "baseDigest": "sha256:b", "split": 3, "processor": "avx2 torch-2"}
CHOICE = {"precision": "int8", "kernel": "onednn", "sample": "windows of acme/trade@1"}
ENGINE = {
    "base": "wheel://base",
    "baseDigest": "sha256:b",
    "split": 3,
    "requested": "auto",
    "source": "Measured",
    "recorded": True,
    "choice": CHOICE,
}


def _record(cluster: Any, **proposal: Any) -> Any:
    body = {"key": KEY, "proposal": proposal or None}
    return cluster.internal("POST", "/runtimes/r1/precision-choices", body)["choice"]


def _engines(cluster: Any, incarnation: str) -> list[Any]:
    body = {"incarnation": incarnation, "pool": "cpu", "processor": "avx2 torch-2", "engines": [ENGINE]}
    cluster.internal("PUT", "/runtimes/r1/engines", body)
    (runtime,) = cluster.admin("GET", "/runtimes")["items"]
    return list(runtime["engines"])


def test_a_deleted_choice_can_be_made_again(cluster: Any) -> None:
    _record(cluster, **CHOICE)
    (listed,) = cluster.admin("GET", "/precision-choices")["items"]
    assert {name: listed[name] for name in KEY} == KEY
    assert (listed["choice"]["kernel"], listed["runtimeId"]) == ("onednn", "r1")
    for _ in range(2):  # idempotent
        cluster.admin("DELETE", f"/precision-choices/{listed['id']}")
    assert _record(cluster) is None
    assert _record(cluster, precision="float32", kernel="mkl")["precision"] == "float32"


def test_a_runtime_shows_its_engines_until_it_starts_again(cluster: Any) -> None:
    cluster.runtime("r1")
    (before,) = cluster.admin("GET", "/runtimes")["items"]
    assert (before["engines"], before["pool"], before["processor"]) == ([], "", "")
    assert _engines(cluster, "another") == []
    (engine,) = _engines(cluster, "one")
    assert engine["choice"]["precision"] == "int8"
    cluster.runtime("r1", incarnation="two")
    (after,) = cluster.admin("GET", "/runtimes")["items"]
    assert after["engines"] == []


@pytest.mark.parametrize("choice_id", ["0", "x", str(2**63)])
def test_an_id_that_is_none_is_refused(choice_id: str, cluster: Any) -> None:
    headers = {"Authorization": "Bearer admin-key-of-the-tests"}
    answer = cluster.client.delete(f"/admin/v1/precision-choices/{choice_id}", headers=headers)
    assert answer.status_code == 422
