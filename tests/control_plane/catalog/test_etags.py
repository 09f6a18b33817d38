"""A TaskAdapter's ETag changes exactly when its versions, placements or load reports change."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event

from hmi_api.internal.catalog import MAX_ETAGS
from hmi_control_plane.catalog.adapters import list_etags
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.settings import Settings

Act = Callable[[Any], object]


def etags(cluster: Any, *keys: str) -> Any:
    return cluster.internal("POST", "/adapters/etags", {"keys": list(keys)})["etags"]


@pytest.fixture
def one(cluster: Any) -> Any:
    """A published TaskAdapter that two runtimes serve, and another one."""
    cluster.domain()
    cluster.adapter("one", replicas=2)
    cluster.adapter("two")
    for runtime in ("r1", "r2"):
        cluster.runtime(runtime)
    cluster.beat("r1", ready=["acme/one@1"])
    return cluster


def test_a_view_has_the_same_etag_as_the_list_of_etags(one: Any) -> None:
    given = etags(one, "acme/one", "acme/two", "acme/none", "nothing")
    assert given == {f"acme/{name}": one.view(name)["etag"] for name in ("one", "two")}
    assert given["acme/one"] != given["acme/two"]


FAILED = {"adapter": "acme/one", "version": 1, "reason": "ArtifactDamaged", "message": "A digest differs."}
CHANGES: dict[str, Act] = {
    "another runtime is ready": lambda one: one.beat("r2", ready=["acme/one@1"]),
    "it is gone from one": lambda one: one.beat("r1", gone=["acme/one@1"]),
    "it cannot be loaded": lambda one: one.beat("r2", failed=[FAILED]),
    "a new version": lambda one: one.retrain("one", spec="2", replicas=2),
    "fewer replicas": lambda one: one.declare_adapter("one", replicas=1),
    "a runtime leaves": lambda one: one.internal("DELETE", "/runtimes/r1"),
    "a runtime is another now": lambda one: one.runtime("r1", incarnation="two"),
    "another resource of that name": lambda one: one.declare_adapter("one", uid="another"),
}
NO_CHANGES: dict[str, Act] = {
    "a read": lambda one: one.view("one"),
    "a heartbeat": lambda one: one.beat("r1"),
    "the same report": lambda one: one.beat("r1", ready=["acme/one@1"]),
    "another adapter": lambda one: one.beat("r1", ready=["acme/two@1"]),
    "a run begins": lambda one: one.adapter_run("one", spec="2"),
    "it is declared again": lambda one: one.declare_adapter("one", replicas=2),
}


@pytest.mark.parametrize("act", CHANGES.values(), ids=CHANGES)
def test_the_etag_changes_when_the_view_changes(one: Any, act: Act) -> None:
    before = etags(one, "acme/one")
    act(one)
    assert etags(one, "acme/one") != before
    assert etags(one, "acme/one") == {"acme/one": one.view("one")["etag"]}


@pytest.mark.parametrize("act", NO_CHANGES.values(), ids=NO_CHANGES)
def test_the_etag_stays_when_the_view_does_not_change(one: Any, act: Act) -> None:
    before = etags(one, "acme/one")
    act(one)
    assert etags(one, "acme/one") == before


def test_a_deleted_adapter_has_no_etag(one: Any) -> None:
    one.internal("DELETE", "/adapters/acme/one")
    assert etags(one, "acme/one") == {}


def test_the_number_of_statements_does_not_depend_on_the_number_of_adapters(
    one: Any, settings: Settings
) -> None:
    several = [f"acme/task-{number}" for number in range(5)]
    for key in several:
        one.declare_adapter(key.removeprefix("acme/"))
    database, statements = Database(settings.database_url), []
    event.listen(database.engine, "before_cursor_execute", lambda *said: statements.append(said[2]))
    costs = []
    for keys in (["acme/one"], ["acme/one", "acme/two", *several]):
        statements.clear()
        with database.read() as session:
            assert len(list_etags(session, keys)) == len(keys)
        costs.append(len(statements))
    database.close()
    assert costs[0] == costs[1]


def test_too_many_keys_in_one_request_are_refused(one: Any) -> None:
    keys = [f"acme/task-{number}" for number in range(MAX_ETAGS + 1)]
    with pytest.raises(AssertionError, match="500"):
        etags(one, *keys)
