"""What the gateway does when runtimes, routes or the disk fail."""

from pathlib import Path
from typing import Any

import pytest

from hmi_api.internal.inference import RowError

NOT_LOADED = RowError(status=503, reason="AdapterNotLoaded", message="Not here.")


@pytest.fixture
def second(cluster: Any, network: Any, runtime: Any) -> Any:
    """A second runtime, which has spam too."""
    small = network.add("r2")
    cluster.runtime("r2")
    cluster.beat("r2", ready=["acme/spam@1"])
    return small


def test_a_refused_connection_is_tried_again_at_the_only_runtime(acme: Any, runtime: Any) -> None:
    runtime.refuses = 1
    assert acme.classify(model="spam", input="yes").status_code == 200


def test_the_one_that_is_left_is_waited_for_a_little(acme: Any, runtime: Any, second: Any) -> None:
    runtime.status = 500
    second.refuses = 2
    assert acme.classify(model="spam", input="yes").status_code == 200


def test_a_runtime_that_is_gone_is_503_with_retry_after(acme: Any, runtime: Any) -> None:
    runtime.refuses = 100
    response = acme.classify(model="spam", input="yes")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "RuntimeUnavailable"


def test_another_runtime_answers_for_one_that_fails(acme: Any, runtime: Any, second: Any) -> None:
    runtime.status = 500
    for _ in range(3):
        assert acme.classify(model="spam", input="yes").status_code == 200
    assert len(second.requests) == 3


def test_rows_that_one_runtime_cannot_serve_go_to_another(acme: Any, runtime: Any, second: Any) -> None:
    runtime.row_errors["acme/spam"] = NOT_LOADED
    body = acme.classify(models=["spam", "topic"], input="yes").json()
    assert [part["data"][0]["label"] for part in body["models"]] == ["yes", "yes"]
    assert [row.adapter for row in second.requests[0].rows] == ["acme/spam"]


def test_what_a_runtime_says_of_a_model_is_kept_though_another_does_not_answer(
    acme: Any, runtime: Any, second: Any
) -> None:
    missing = RowError(status=503, reason="ArtifactMissing", message="It is not in the artifact store.")
    runtime.row_errors["acme/spam"] = second.row_errors["acme/spam"] = missing
    for down, other in ((runtime, second), (second, runtime)):
        down.status, other.status = 500, 200
        error = acme.classify(model="spam", input="yes").json()["error"]
        assert (error["code"], error["message"]) == ("ArtifactMissing", "It is not in the artifact store.")


def test_a_runtime_that_died_is_found_at_its_new_address(
    acme: Any, runtime: Any, network: Any, cluster: Any
) -> None:
    assert acme.classify(model="spam", input="yes").status_code == 200
    restarted = network.add("r1-again")
    runtime.status = 500  # what the gateway knows leads to where nobody answers any more
    cluster.runtime("r1", incarnation="two", url="http://r1-again:9000")
    cluster.beat("r1", incarnation="two", ready=["acme/spam@1"])
    assert acme.classify(model="spam", input="yes").status_code == 200
    assert len(restarted.requests) == 1


def test_a_model_that_moved_is_found_where_it_went(
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


def test_a_connection_that_breaks_halfway_costs_no_answer(acme: Any, runtime: Any, second: Any) -> None:
    runtime.breaks = 100
    for _ in range(4):
        assert acme.classify(model="spam", input="yes").status_code == 200
    assert len(second.requests) == 4


def test_a_users_error_is_not_tried_again(acme: Any, runtime: Any, second: Any) -> None:
    refused = RowError(status=400, reason="TextTooLong", message="Too long.")
    runtime.row_errors["acme/spam"] = second.row_errors["acme/spam"] = refused
    assert acme.classify(model="spam", input="yes").status_code == 400
    assert len(runtime.requests) + len(second.requests) == 1


def test_an_answer_that_cannot_be_recorded_is_not_given(
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
