"""The gateway when runtimes, routes or the disk fail."""

from pathlib import Path
from typing import Any

import pytest

from hmi_api.internal.inference import RowError

NOT_LOADED = RowError(status=503, reason="AdapterNotLoaded", message="Not here.")


@pytest.fixture
def second(cluster: Any, network: Any, runtime: Any) -> Any:
    """A second runtime with spam."""
    small = network.add("r2")
    cluster.runtime("r2")
    cluster.beat("r2", ready=["acme/spam@1"])
    return small


def test_a_refused_connection_to_the_only_runtime_is_retried(acme: Any, runtime: Any) -> None:
    runtime.refuses = 1
    assert acme.classify(model="spam", input="yes").status_code == 200


def test_the_last_runtime_is_retried_after_a_pause(acme: Any, runtime: Any, second: Any) -> None:
    runtime.status = 500
    second.refuses = 2
    assert acme.classify(model="spam", input="yes").status_code == 200


def test_a_stopped_runtime_is_503_with_retry_after(acme: Any, runtime: Any) -> None:
    runtime.refuses = 100
    response = acme.classify(model="spam", input="yes")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "RuntimeUnavailable"


@pytest.mark.parametrize("failure", [{"refuses": 1}, {"breaks": 1}, {"status": 500}])
def test_the_log_names_the_address_of_a_runtime_that_fails(
    acme: Any, runtime: Any, second: Any, failure: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in failure.items():
        setattr(runtime, name, value)
    assert acme.classify(model="spam", input="yes").status_code == 200
    assert "runtime r1 at http://r1:9000 failed" in caplog.text


def test_another_runtime_answers_when_one_fails(acme: Any, runtime: Any, second: Any) -> None:
    runtime.status = 500
    for _ in range(3):
        assert acme.classify(model="spam", input="yes").status_code == 200
    assert len(second.requests) == 3


def test_rows_that_one_runtime_cannot_serve_go_to_another(acme: Any, runtime: Any, second: Any) -> None:
    runtime.row_errors["acme/spam"] = NOT_LOADED
    body = acme.classify(models=["spam", "topic"], input="yes").json()
    assert [part["data"][0]["label"] for part in body["models"]] == ["yes", "yes"]
    assert [row.adapter for row in second.requests[0].rows] == ["acme/spam"]


def test_a_runtimes_error_is_kept_when_another_runtime_does_not_answer(
    acme: Any, runtime: Any, second: Any
) -> None:
    missing = RowError(status=503, reason="ArtifactMissing", message="It is not in the artifact store.")
    runtime.row_errors["acme/spam"] = second.row_errors["acme/spam"] = missing
    for down, other in ((runtime, second), (second, runtime)):
        down.status, other.status = 500, 200
        error = acme.classify(model="spam", input="yes").json()["error"]
        assert (error["code"], error["message"]) == ("ArtifactMissing", "It is not in the artifact store.")


def test_a_restarted_runtime_is_reached_at_its_new_address(
    acme: Any, runtime: Any, network: Any, cluster: Any
) -> None:
    assert acme.classify(model="spam", input="yes").status_code == 200
    restarted = network.add("r1-again")
    runtime.status = 500  # the cached route leads to a runtime that does not answer any more
    cluster.runtime("r1", incarnation="two", url="http://r1-again:9000")
    cluster.beat("r1", incarnation="two", ready=["acme/spam@1"])
    assert acme.classify(model="spam", input="yes").status_code == 200
    assert len(restarted.requests) == 1


def test_a_moved_model_is_reached_on_its_new_runtime(
    acme: Any, runtime: Any, network: Any, cluster: Any
) -> None:
    assert acme.classify(model="spam", input="yes").status_code == 200
    runtime.row_errors["acme/spam"] = RowError(status=503, reason="Draining", message="Going.")
    second = network.add("r2")
    cluster.runtime("r2")
    cluster.beat("r1", draining=True)
    assert acme.classify(model="spam", input="yes").status_code == 503
    cluster.beat("r2", ready=["acme/spam@1"])
    assert acme.classify(model="spam", input="yes").status_code == 200
    assert len(second.requests) == 1


def test_a_request_whose_connection_broke_is_answered(acme: Any, runtime: Any, second: Any) -> None:
    runtime.breaks = 100
    for _ in range(4):
        assert acme.classify(model="spam", input="yes").status_code == 200
    assert len(second.requests) == 4


def test_an_invalid_row_is_not_retried(acme: Any, runtime: Any, second: Any) -> None:
    refused = RowError(status=400, reason="TextTooLong", message="Too long.")
    runtime.row_errors["acme/spam"] = second.row_errors["acme/spam"] = refused
    assert acme.classify(model="spam", input="yes").status_code == 400
    assert len(runtime.requests) + len(second.requests) == 1


def test_a_request_whose_usage_cannot_be_recorded_is_503(
    acme: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fdatasync", full)
    response = acme.classify(model="spam", input="yes")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "UsageNotRecorded"
    monkeypatch.undo()
    assert acme.classify(model="spam", input="yes").status_code == 200
    assert all(path.stat().st_size < 2_000 for path in Path(settings.usage_dir).glob("*.events"))
