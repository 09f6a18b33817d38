"""A gateway that cannot record usage is not ready; it is ready again after events were flushed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving import eventually
from sqlalchemy.exc import OperationalError

from hmi_control_plane.metering import flusher
from hmi_control_plane.settings import Settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings of a spool that is full after a few requests."""
    return settings.model_copy(update={"usage_spool_limit_bytes": 6_000})


@pytest.fixture
def bring_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Make the catalog accept events; it refuses them before."""

    def away(*_arguments: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("the database is away"))

    with monkeypatch.context() as patch:
        patch.setattr(flusher, "record_events", away)
        yield patch.undo


def fill(acme: Any) -> int:
    """Send requests until one cannot be recorded; return how many were answered."""
    for answered in range(100):
        response = acme.classify(model="spam", input="yes")
        if response.status_code != 200:
            assert (response.status_code, response.json()["error"]["code"]) == (503, "UsageNotRecorded")
            return answered
    raise AssertionError("the spool never filled")


def test_a_full_spool_is_not_ready_until_events_are_delivered(
    acme: Any, client: TestClient, bring_back: Callable[[], None]
) -> None:
    assert client.get("/readyz").status_code == 200
    answered = fill(acme)
    assert answered > 2

    refused = client.get("/readyz")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "SpoolFull")
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/healthz").status_code == 200
    assert "hmi_usage_spool_full 1.0" in client.get("/metrics").text

    bring_back()
    eventually(lambda: client.get("/readyz").status_code == 200, "it is ready again")
    assert acme.classify(model="spam", input="yes").status_code == 200
    assert "hmi_usage_spool_full 0.0" in client.get("/metrics").text


def test_usage_recorded_before_the_spool_was_full_is_counted_once(
    acme: Any, client: TestClient, bring_back: Callable[[], None]
) -> None:
    answered = fill(acme)
    bring_back()

    def counted() -> int:
        items = acme.call("GET", "/v1/usage?to=2100-01-01&meter=requests").json()["items"]
        return sum(item["quantity"] for item in items)

    eventually(lambda: counted() == answered, "all answers are in the ledger")
