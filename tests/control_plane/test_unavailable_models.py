"""A model that is not served: 503 while work on it is in progress, else 409 with the reason."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hmi_control_plane.catalog.database import utc_now
from hmi_control_plane.gateway import routes, unavailable_models

Ask = Callable[..., Any]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: the SQL is the same on PostgreSQL."""
    return sqlite_url


@pytest.fixture
def ask(client: TestClient, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Requests a model of acme by every API; returns status, reason, message and Retry-After."""
    monkeypatch.setattr(routes, "_MIN_CACHE_SECONDS", 0.0)
    cluster.internal("PUT", "/tenants/acme")
    key = cluster.admin("POST", "/tenants/acme/keys", {"name": "test"})["key"]
    headers = {"Authorization": f"Bearer {key}"}

    def answered(model: str = "spam") -> tuple[int, str, str, str | None]:
        body = {"model": model, "input": "yes"}
        response = client.post("/classify", json=body, headers=headers)
        error = response.json()["error"]
        ready = client.get(f"/v2/models/{model}/ready", headers=headers)
        assert ready.status_code == response.status_code
        assert ready.json() == {"error": error["message"]}
        retry_after = response.headers.get("retry-after")
        assert ready.headers.get("retry-after") == retry_after
        assert (retry_after is not None) == (response.status_code == 503)
        return response.status_code, error["code"], error["message"], retry_after

    return answered


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Moves the clock of the explanations by two minutes."""

    def pass_time() -> None:
        monkeypatch.setattr(unavailable_models, "utc_now", lambda: utc_now() + timedelta(minutes=2))

    return pass_time


def fail(cluster: Any, run: Any, reason: str, *, retryable: bool = False) -> None:
    """End a run without a result."""
    failure = {"reason": reason, "message": f"{reason} happened.", "retryable": retryable}
    cluster.internal("POST", f"/runs/{run['id']}/fail", failure)


def test_an_unknown_model_is_404(ask: Ask, cluster: Any) -> None:
    assert ask("absent")[0] == 404


# --- the Domain --------------------------------------------------------------------------------------


def test_a_missing_domain_is_503_for_a_minute_then_409(
    ask: Ask, cluster: Any, later: Callable[[], None]
) -> None:
    cluster.declare_adapter("spam")
    assert ask()[:2] == (503, "ModelNotTrained")
    later()
    status, reason, message, _ = ask()
    assert (status, reason) == (409, "DomainNotFound")
    assert "acme/trade" in message


def test_a_domain_in_training_is_503(ask: Ask, cluster: Any, later: Callable[[], None]) -> None:
    cluster.declare_domain("trade")
    cluster.declare_adapter("spam")
    cluster.domain_run("trade")
    later()
    assert ask()[0] == 503


def test_a_domain_whose_corpus_cannot_be_read_is_409_with_the_message(ask: Ask, cluster: Any) -> None:
    cluster.declare_domain("trade")
    cluster.declare_adapter("spam")
    fail(cluster, cluster.domain_run("trade"), "CorpusEmpty")
    status, reason, message, _ = ask()
    assert (status, reason) == (409, "CorpusEmpty")
    assert "CorpusEmpty happened." in message


def test_a_failure_of_another_tenants_domain_is_reported_without_its_message(ask: Ask, cluster: Any) -> None:
    cluster.declare_domain("shared", tenant="commons")
    cluster.declare_adapter("spam", domain="commons/shared")
    fail(cluster, cluster.domain_run("shared", tenant="commons"), "CorpusEmpty")
    status, reason, message, _ = ask()
    assert (status, reason) == (409, "CorpusEmpty")
    assert "happened" not in message


def test_a_domain_that_waits_for_its_parent_reports_the_parents_state(ask: Ask, cluster: Any) -> None:
    cluster.declare_domain("root")
    record = {
        "uid": "dom-acme-trade",
        "tenant": "acme",
        "generation": 1,
        "specDigest": "sha256:" + "1" * 64,
        "baseUri": "wheel://base",
        "parent": "acme/root",
    }
    cluster.internal("PUT", "/domains/acme/trade", record)
    cluster.declare_adapter("spam")
    run = cluster.domain_run("root")
    assert ask()[0] == 503
    fail(cluster, run, "BaseModelNotFound")
    assert ask()[:2] == (409, "BaseModelNotFound")


# --- its own training --------------------------------------------------------------------------------


@pytest.fixture
def domain(cluster: Any) -> None:
    """A published Domain, and a TaskAdapter on it."""
    cluster.domain()
    cluster.declare_adapter("spam")


def test_a_pending_or_running_training_is_503(
    ask: Ask, cluster: Any, domain: None, later: Callable[[], None]
) -> None:
    assert ask()[0] == 503
    run = cluster.adapter_run("spam")
    later()
    assert ask()[0] == 503
    cluster.internal(
        "POST", f"/runs/{run['id']}/progress", {"stage": "training", "step": 1, "total": 9, "metrics": {}}
    )
    status, reason, message, retry_after = ask()
    assert (status, reason, retry_after) == (503, "ModelNotTrained", "10")
    assert "being trained" in message


def test_training_that_is_not_retried_is_409(ask: Ask, cluster: Any, domain: None) -> None:
    fail(cluster, cluster.adapter_run("spam"), "RowMalformed")
    status, reason, message, _ = ask()
    assert (status, reason) == (409, "RowMalformed")
    assert "RowMalformed happened." in message


def test_a_retryable_failure_is_503_until_the_last_attempt(ask: Ask, cluster: Any, domain: None) -> None:
    for attempt in range(4):
        assert ask()[0] == 503
        fail(cluster, cluster.adapter_run("spam", attempt=attempt), "DataUnreachable", retryable=True)
    assert ask()[:2] == (409, "DataUnreachable")


def test_a_failure_that_is_retried_without_limit_stays_503(ask: Ask, cluster: Any, domain: None) -> None:
    for attempt in range(5):
        fail(cluster, cluster.adapter_run("spam", attempt=attempt), "SourceAway", retryable=True)
    assert ask()[0] == 503


def test_a_missed_gate_is_409_with_the_metric(ask: Ask, cluster: Any, domain: None) -> None:
    message = "accuracy 0.41 is below 0.7."
    cluster.complete_adapter(cluster.adapter_run("spam"), gatePassed=False, gateMessage=message)
    status, reason, answer, _ = ask()
    assert (status, reason) == (409, "GateNotReached")
    assert message in answer


def test_a_new_spec_after_a_failure_is_503(ask: Ask, cluster: Any, domain: None) -> None:
    fail(cluster, cluster.adapter_run("spam"), "RowMalformed")
    assert ask()[0] == 409
    cluster.declare_adapter("spam", specDigest="sha256:" + "2" * 64)
    assert ask()[0] == 503


def test_a_resource_without_a_run_is_409_after_a_minute(
    ask: Ask, cluster: Any, domain: None, later: Callable[[], None]
) -> None:
    assert ask()[0] == 503
    later()
    status, reason, message, _ = ask()
    assert (status, reason) == (409, "ModelNotTrained")
    assert "conditions" in message


# --- loading -----------------------------------------------------------------------------------------


@pytest.fixture
def published(cluster: Any) -> None:
    """A published TaskAdapter, and a runtime."""
    cluster.runtime("r1")
    cluster.domain()
    cluster.adapter("spam")


def load_failed(cluster: Any, reason: str, runtime: str = "r1") -> None:
    """Report that a runtime could not load version 1."""
    failure = {"adapter": "acme/spam", "version": 1, "reason": reason, "message": f"{reason} happened."}
    cluster.beat(runtime, failed=[failure])


def test_a_model_that_is_being_loaded_is_503(ask: Ask, published: None, later: Callable[[], None]) -> None:
    later()
    assert ask()[:2] == (503, "ModelNotLoaded")
    assert ask()[3] == "1"


def test_a_model_that_no_runtime_has_room_for_is_503(
    ask: Ask, cluster: Any, later: Callable[[], None]
) -> None:
    cluster.domain()
    cluster.adapter("spam")
    later()
    assert ask()[:2] == (503, "ModelNotLoaded")


def test_a_model_that_can_never_be_loaded_is_409_with_the_reason(
    ask: Ask, cluster: Any, published: None
) -> None:
    load_failed(cluster, "AdapterTooLarge")
    status, reason, message, _ = ask()
    assert (status, reason) == (409, "AdapterTooLarge")
    assert "AdapterTooLarge happened." in message


def test_a_load_that_is_retried_is_503_with_the_cause(ask: Ask, cluster: Any, published: None) -> None:
    load_failed(cluster, "TableBudgetFull")
    status, reason, message, _ = ask()
    assert (status, reason) == (503, "ModelNotLoaded")
    assert "TableBudgetFull happened." in message


def test_one_runtime_that_retries_the_load_makes_it_503(ask: Ask, cluster: Any, published: None) -> None:
    cluster.runtime("r2")
    load_failed(cluster, "AdapterTooLarge")
    load_failed(cluster, "HostBudgetFull", "r2")
    assert ask()[0] == 503


def test_reports_of_lost_runtimes_are_ignored(ask: Ask, cluster: Any, published: None) -> None:
    load_failed(cluster, "AdapterTooLarge")
    cluster.runtime("r1", incarnation="two")
    assert ask()[0] == 503


def test_a_model_that_serves_an_earlier_version_is_served(
    client: TestClient, cluster: Any, published: None, ask: Ask
) -> None:
    cluster.beat(ready=["acme/spam@1"])
    cluster.retrain("spam", spec="2", gatePassed=False, gateMessage="too low")
    models = client.get("/v2/models/spam/ready")
    assert models.status_code == 401
    key = cluster.admin("POST", "/tenants/acme/keys", {"name": "other"})["key"]
    ready = client.get("/v2/models/spam/ready", headers={"Authorization": f"Bearer {key}"})
    assert ready.status_code == 200
