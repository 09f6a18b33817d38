"""The gateway's queries of the catalog, on both databases."""

from collections.abc import Iterator
from typing import Any

import pytest

from hmi_api.names import AdapterKey
from hmi_control_plane.auth.authenticator import Identity
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tenants import get_tenant
from hmi_control_plane.gateway.models import list_models_of_tenant
from hmi_control_plane.gateway.routes import Route, read_routes
from hmi_control_plane.settings import Settings

SPAM = AdapterKey("acme/spam")


@pytest.fixture
def catalog(settings: Settings, cluster: Any) -> Iterator[Database]:
    """A catalog with two runtimes, one model that is loaded on both, and one that is not."""
    cluster.runtime("r1")
    cluster.runtime("r2")
    cluster.domain()
    cluster.adapter("spam", replicas=2)
    cluster.declare_adapter("fresh")
    for runtime_id in ("r1", "r2"):
        cluster.beat(runtime_id, ready=["acme/spam@1"])
    database = Database(settings.database_url)
    yield database
    database.close()


def route(database: Database) -> Route:
    """Read the route of acme's spam."""
    with database.read() as session:
        return read_routes(session, [SPAM])[SPAM]


def test_routes_lead_to_the_runtimes_that_report_an_adapter_as_loaded(catalog: Database) -> None:
    with catalog.read() as session:
        found = read_routes(session, [SPAM, AdapterKey("acme/fresh"), AdapterKey("bolt/spam")])
    assert {key: [runtime.id for runtime in found[key].runtimes] for key in found} == {
        "acme/spam": ["r1", "r2"],
        "acme/fresh": [],
    }
    assert found[SPAM].runtimes[0].url == "http://r1:9000"
    assert found[SPAM].version == 1


def test_runtimes_with_an_old_version_come_after_those_with_the_current_one(
    catalog: Database, cluster: Any
) -> None:
    cluster.retrain("spam", spec="2")
    assert [runtime.id for runtime in route(catalog).runtimes] == ["r1", "r2"]
    cluster.beat("r2", ready=["acme/spam@2"], gone=["acme/spam@1"])
    assert [runtime.id for runtime in route(catalog).runtimes] == ["r2", "r1"]


def test_a_draining_runtime_gets_requests_only_until_another_has_the_adapter(
    catalog: Database, cluster: Any
) -> None:
    failure = {"adapter": "acme/spam", "version": 1, "reason": "DigestMismatch", "message": "Damaged."}
    cluster.beat("r1", gone=["acme/spam@1"], failed=[failure])
    assert [runtime.id for runtime in route(catalog).runtimes] == ["r2"]
    cluster.beat("r2", draining=True)
    assert [runtime.id for runtime in route(catalog).runtimes] == ["r2"]
    cluster.beat("r1", ready=["acme/spam@1"])
    assert [runtime.id for runtime in route(catalog).runtimes] == ["r1"]


def test_models_say_whether_they_are_ready(catalog: Database) -> None:
    with catalog.read() as session:
        owner = Identity("acme", get_tenant(session, "acme").id, "key")
        found = {model.id: (model.version, model.ready) for model in list_models_of_tenant(session, owner)}
        before = list_models_of_tenant(session, Identity("acme", "tenant_that_was_deleted", "key"))
    assert found == {"fresh": (None, False), "spam": (1, True)}
    assert before == []
