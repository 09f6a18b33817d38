"""Only the pods of a run's Job report on it, and their running time is billed."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hmi_api.security.internal_auth import ServiceAccounts
from hmi_control_plane.app import create_app
from hmi_control_plane.settings import Part, Settings

OPERATOR = "system:serviceaccount:hmi-system:hmi-operator"
TRAINER = "system:serviceaccount:acme:default"
SHOWN = {"artifacts": [], "baseDigest": "sha256:b", "gatePassed": False, "metrics": {"accuracy": 99.0}}


@pytest.fixture
def settings(settings: Settings, token_reviews: Any, tmp_path: Path) -> Settings:
    """As on Kubernetes: acme's namespace has a token for each of two pods, and one that is bound to none."""
    own = tmp_path / "token"
    own.write_text("own-token")
    token_reviews.accounts |= {"operator": OPERATOR}
    token_reviews.accounts |= dict.fromkeys(("first", "second", "shell", "unbound"), TRAINER)
    token_reviews.pods |= {"first": "pod-1", "second": "pod-2", "shell": "pod-of-a-shell"}
    return settings.model_copy(
        update={
            "internal_token": None,
            "token_review": True,
            "roles": ServiceAccounts(operator=OPERATOR),
            "kubernetes_url": token_reviews.url,
            "kubernetes_token_file": own,
        }
    )


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """The control plane without the gateway."""
    app = create_app(settings, Part.CONTROL_PLANE)
    with TestClient(app, raise_server_exceptions=False) as started:
        yield started


class Calls:
    """Calls the internal API with an account's token."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def __call__(self, who: str, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {who}"}
        return self.client.request(method, f"/internal/v1{path}", json=body, headers=headers)

    def pods(self, run: str, *pods: dict[str, Any]) -> None:
        """Report a Job's pods, as the operator does."""
        answer = self("operator", "PUT", f"/runs/{run}/pods", {"pods": list(pods)})
        assert answer.status_code == 204, answer.text

    def billed(self) -> list[int]:
        """Return the training seconds in the ledger."""
        key = {"Authorization": "Bearer admin-key-of-the-tests"}
        answer = self.client.get("/admin/v1/usage", params={"tenant": "acme"}, headers=key)
        rows = answer.json()["items"]
        return [row["quantity"] for row in rows if row["meter"] == "training_seconds"]


@pytest.fixture
def call(client: TestClient) -> Calls:
    return Calls(client)


@pytest.fixture
def run(call: Calls) -> str:
    """The id of a TaskAdapter's run in acme's namespace."""
    call("operator", "PUT", "/tenants/acme")
    record = {"uid": "u", "tenant": "acme", "generation": 1, "specDigest": "sha256:1", "domain": "acme/trade"}
    call("operator", "PUT", "/adapters/acme/spam", record | {"taskType": "SequenceClassification"})
    layers = {"kind": "Layers", "uri": "l", "digest": "sha256:l", "bytes": 1}
    domain = {
        "version": 1,
        "specDigest": "sha256:d",
        "base": {"uri": "wheel://b"},
        "baseDigest": "sha256:b",
        "split": 3,
        "layers": layers,
        "tables": [],
        "onMiss": "Compute",
        "entries": 1,
        "coverage": 0.5,
    }
    spec = {
        "domainRef": {"name": "trade"},
        "task": {"type": "SequenceClassification"},
        "data": {"train": {"uri": "rows.jsonl"}},
    }
    whole = {"kind": "adapter", "namespace": "acme", "name": "spam", "spec": spec, "domain": domain}
    wanted = {"uid": "u", "tenant": "acme", "specDigest": "sha256:1", "spec": whole}
    made = call("operator", "POST", "/runs", wanted)
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def pod(number: int, began: float | None = None, ended: float | None = None) -> dict[str, Any]:
    """A pod that started and ended this many seconds ago."""
    now = datetime.now(UTC)
    moments = {"startedAt": began, "finishedAt": ended}
    times = {
        name: (now - timedelta(seconds=ago)).isoformat() for name, ago in moments.items() if ago is not None
    }
    return {"uid": f"pod-{number}"} | times


def test_only_pods_of_the_runs_job_may_report_on_it(call: Calls, run: str) -> None:
    call.pods(run, pod(1))
    ways = [
        ("GET", f"/runs/{run}", None),
        ("POST", f"/runs/{run}/progress", {"stage": "training", "step": 1, "total": 2}),
        ("POST", f"/runs/{run}/complete", SHOWN),
        ("POST", f"/runs/{run}/fail", {"reason": "Why", "message": "So."}),
        ("POST", f"/artifacts/{run}", {"manifest": "{}"}),
    ]
    for method, path, body in ways:
        unbound = call("unbound", method, path, body)
        assert (unbound.status_code, unbound.json()["error"]["code"]) == (403, "TokenWithoutPod")
        other = call("shell", method, path, body)
        assert (other.status_code, other.json()["error"]["code"]) == (503, "PodUnknown")
    assert call("operator", "GET", f"/runs/{run}").json()["state"] == "Pending"
    assert call("first", "GET", f"/runs/{run}").status_code == 200


def test_an_unknown_pod_gets_503_until_the_operator_reports_it(call: Calls, run: str) -> None:
    assert call("first", "GET", f"/runs/{run}").status_code == 503
    call.pods(run, pod(1))
    assert call("first", "GET", f"/runs/{run}").status_code == 200


def test_when_another_pod_continues_a_run_the_first_may_not_report(call: Calls, run: str) -> None:
    call.pods(run, pod(1, began=100))
    call.pods(run, pod(2, began=5))
    progress = {"stage": "training", "step": 1, "total": 2}
    assert call("second", "POST", f"/runs/{run}/progress", progress).status_code == 200
    assert call("first", "POST", f"/runs/{run}/progress", progress).status_code == 503


@pytest.mark.parametrize("claimed", [0.0, 5.0, 1e8])
def test_training_seconds_are_measured_from_pods_and_not_taken_from_the_trainer(
    call: Calls, run: str, claimed: float
) -> None:
    call.pods(run, pod(1, began=1000, ended=900), pod(2, began=50))
    done = call("second", "POST", f"/runs/{run}/complete", SHOWN | {"trainingSeconds": claimed})
    assert done.status_code == 200, done.text
    assert 149 < done.json()["result"]["trainingSeconds"] < 180
    assert [150 <= seconds < 180 for seconds in call.billed()] == [True]


def test_a_run_that_ended_before_its_pods_start_was_known_is_metered_later(call: Calls, run: str) -> None:
    call.pods(run, pod(1))
    assert call("first", "POST", f"/runs/{run}/complete", SHOWN | {"trainingSeconds": 7}).status_code == 200
    assert call.billed() == []
    for _ in range(2):
        call.pods(run, pod(1, began=30, ended=10))
        assert call.billed() == [20]
    assert call("operator", "GET", f"/runs/{run}").json()["result"]["trainingSeconds"] == pytest.approx(20)
