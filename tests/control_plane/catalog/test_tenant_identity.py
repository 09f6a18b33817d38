"""A tenant's name can be used again, but its id cannot: usage, invoices and keys belong to the id."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from prometheus_client import CollectorRegistry
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from hmi_control_plane.auth.authenticator import NewKey
from hmi_control_plane.catalog import tenants
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.migrate import config, upgrade
from hmi_control_plane.catalog.tables import Meter
from hmi_control_plane.metering.events import UsageEvent, to_cloud_event
from hmi_control_plane.metering.flusher import Flusher, MeteringMetrics
from hmi_control_plane.metering.records import record_events
from hmi_control_plane.metering.segments import SegmentFolder, encode_line
from hmi_control_plane.settings import Settings

ADMIN = {"Authorization": "Bearer admin-key-of-the-tests"}
PERIOD = {"from": "2026-01-01", "to": "2100-01-01"}


@pytest.fixture
def catalog(settings: Settings) -> Iterator[Database]:
    """The database of the running control plane."""
    opened = Database(settings.database_url)
    yield opened
    opened.close()


def new_key(cluster: Any) -> dict[str, str]:
    """Return the headers of a new key of acme."""
    return {"Authorization": f"Bearer {cluster.admin('POST', '/tenants/acme/keys', {})['key']}"}


def used(cluster: Any, tenant: str) -> int:
    """Return the rows that an administrator sees of a tenant."""
    items = cluster.admin("GET", "/usage", params={**PERIOD, "tenant": tenant, "meter": "rows"})["items"]
    return sum(item["quantity"] for item in items)


def rows_event(number: int, **fields: Any) -> UsageEvent:
    """Return an event of three rows of acme's spam."""
    moment = datetime.now(UTC)
    return UsageEvent("/test", str(number), moment, "acme", Meter.ROWS, 3, adapter="spam", **fields)


def test_a_new_tenant_sees_nothing_of_a_deleted_one_with_its_name(cluster: Any, catalog: Database) -> None:
    old = cluster.admin("POST", "/tenants", {"name": "acme", "displayName": "Old"})
    cluster.domain()
    cluster.adapter("spam")  # two training seconds
    with catalog.write() as session:
        record_events(session, [rows_event(1, tenant_id=old["id"])], datetime.now(UTC))
    cluster.admin("PUT", "/prices", {"meter": "rows", "unitPrice": "1", "effectiveFrom": "2026-01-01"})
    now = datetime.now(UTC).isoformat()
    wanted = {"tenant": "acme", "from": "2026-01-01", "to": now}
    invoice = cluster.admin("POST", "/invoices", wanted)["id"]
    cluster.admin("POST", f"/invoices/{invoice}/finalize")
    old_key = new_key(cluster)
    assert cluster.client.get(f"/v1/invoices/{invoice}", headers=old_key).json()["total"] == "3.00"
    cluster.internal("DELETE", "/adapters/acme/spam")
    cluster.internal("DELETE", "/domains/acme/trade")
    cluster.admin("DELETE", "/tenants/acme")

    assert used(cluster, "acme") == 3  # the name alone, while no tenant has it: the last one that had it
    new = cluster.admin("POST", "/tenants", {"name": "acme"})
    assert new["id"] != old["id"]
    assert cluster.client.get("/v1/bill", headers=old_key).status_code == 401
    key = new_key(cluster)
    assert cluster.client.get("/v1/usage", headers=key, params=PERIOD).json()["items"] == []
    bill = cluster.client.get("/v1/bill", headers=key, params=PERIOD).json()
    assert (bill["tenantId"], bill["lines"], bill["total"]) == (new["id"], [], "0.00")
    assert cluster.client.get(f"/v1/invoices/{invoice}", headers=key).status_code == 404
    assert used(cluster, "acme") == 0
    # No invoice of the old one is in the way of the new one's, and none of its use is in it.
    again = cluster.admin("POST", "/invoices", wanted)
    assert (again["tenantId"], again["lines"]) == (new["id"], [])

    (gone,) = cluster.admin("GET", "/deleted-tenants")["items"]
    assert (gone["id"], gone["name"], gone["displayName"]) == (old["id"], "acme", "Old")
    assert used(cluster, old["id"]) == 3
    assert cluster.admin("GET", f"/bills/{old['id']}", params=PERIOD)["total"] == "3.00"
    of_old = cluster.admin("GET", "/invoices", params={"tenant": old["id"]})["items"]
    assert [item["id"] for item in of_old] == [invoice]
    both = cluster.admin("GET", "/usage", params={**PERIOD, "group_by": ["tenant"], "meter": "rows"})
    assert [(item["tenant"], item["tenantId"]) for item in both["items"]] == [("acme", old["id"])]


@pytest.mark.parametrize("knows_the_id", [True, False])
def test_usage_spooled_before_a_deletion_belongs_to_the_deleted_tenant(
    cluster: Any, catalog: Database, tmp_path: Path, knows_the_id: bool
) -> None:
    old = cluster.admin("POST", "/tenants", {"name": "acme"})["id"]
    segments = SegmentFolder(tmp_path / "spool")
    segments.open()
    fields = {"tenant_id": old} if knows_the_id else {}  # earlier versions spooled names alone
    segments.append([encode_line(to_cloud_event(rows_event(1, **fields)))])
    cluster.admin("DELETE", "/tenants/acme")
    new = cluster.admin("POST", "/tenants", {"name": "acme"})["id"]
    fields = {"tenant_id": new} if knows_the_id else {}
    segments.append([encode_line(to_cloud_event(rows_event(2, **fields)))])
    Flusher(segments, catalog, MeteringMetrics(CollectorRegistry())).flush()
    segments.close()
    assert (used(cluster, old), used(cluster, new)) == (3, 3)


def test_usage_of_a_name_that_no_tenant_has_is_kept(catalog: Database, cluster: Any) -> None:
    with catalog.write() as session:
        record_events(session, [rows_event(1)], datetime.now(UTC))
    with catalog.write() as session:
        record_events(session, [rows_event(1), rows_event(2)], datetime.now(UTC))
    (gone,) = cluster.admin("GET", "/deleted-tenants")["items"]
    assert used(cluster, gone["id"]) == 6


@pytest.mark.postgres
def test_a_key_created_during_a_tenants_replacement_belongs_to_the_new_one(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(postgres_url)
    make_key = tenants.new_key

    def replace_tenant() -> NewKey:
        with suppress(OperationalError), database.write() as session:  # it may have to wait for the key
            session.execute(text("SET LOCAL lock_timeout = '200ms'"))
            tenants.delete_tenant(session, "acme")
            session.flush()
            tenants.ensure_tenant(session, "acme")
        return make_key()

    monkeypatch.setattr(tenants, "new_key", replace_tenant)
    with database.write() as session:
        tenants.ensure_tenant(session, "acme")
    with database.write() as session:
        key, _ = tenants.create_key(session, "acme", "")
    with database.read() as session:
        assert key.tenant_id == tenants.get_tenant(session, "acme").id
    database.close()


UNKNOWN = ["nobody", "tenant_0123456789abcdef"]


@pytest.mark.parametrize("tenant", UNKNOWN)
def test_usage_and_bills_of_an_unknown_tenant_are_404(cluster: Any, tenant: str) -> None:
    for path, parameters in (
        (f"/bills/{tenant}", {}),
        ("/usage", {"tenant": tenant}),
        ("/invoices", {"tenant": tenant}),
    ):
        answer = cluster.client.get(f"/admin/v1{path}", params=parameters, headers=ADMIN)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "UnknownTenant")
    body = {"tenant": tenant, **PERIOD}
    answer = cluster.client.post("/admin/v1/invoices", json=body, headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "UnknownTenant")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def old_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database before tenants had ids."""
    postgres = request.param == "postgres"
    url = (
        str(request.getfixturevalue("empty_postgres_url")) if postgres else f"sqlite:///{tmp_path / 'old.db'}"
    )
    upgrade(url, "0003")
    opened = Database(url)
    yield opened
    opened.close()


def test_the_migration_gives_existing_rows_their_tenants_id(old_database: Database) -> None:
    march = datetime(2026, 3, 1, tzinfo=UTC)
    made = {"acme": march + timedelta(days=10), "globex": march}
    with old_database.write() as session:
        for name, created in made.items():
            session.execute(
                text("INSERT INTO tenants (name, display_name, created_at) VALUES (:name, '', :at)"),
                {"name": name, "at": stored(created)},
            )
            session.execute(
                text(
                    "INSERT INTO api_keys (id, tenant, name, secret_hash, created_at) "
                    "VALUES (:name, :name, '', '', :at)"
                ),
                {"name": name, "at": stored(created)},
            )
        for event, (tenant, day) in {
            "before": ("acme", 5),
            "after": ("acme", 15),
            "globex": ("globex", 5),
            "gone": ("initech", 5),
        }.items():
            session.execute(
                text(
                    "INSERT INTO usage_events (source, event_id, tenant, meter, quantity, time, recorded_at) "
                    "VALUES ('/test', :event, :tenant, 'rows', 1, :at, :at)"
                ),
                {"event": event, "tenant": tenant, "at": stored(march + timedelta(days=day))},
            )
        for invoice, (tenant, start, end) in {
            "old": ("acme", 0, 8),
            "both": ("acme", 3, 20),
            "new": ("acme", 10, 20),
            "first": ("globex", 0, 20),
            "last": ("initech", 0, 20),
        }.items():
            session.execute(
                text(
                    "INSERT INTO invoices (id, tenant, currency, period_start, period_end, state, total, "
                    "created_at) VALUES (:id, :tenant, 'EUR', :start, :end, 'final', '1', :at)"
                ),
                {
                    "id": invoice,
                    "tenant": tenant,
                    "start": stored(march + timedelta(days=start)),
                    "end": stored(march + timedelta(days=end)),
                    "at": stored(march + timedelta(days=30)),
                },
            )
    upgrade(old_database.url)
    with old_database.read() as session:
        ids = dict(iter(session.execute(text("SELECT name, id FROM tenants")).all()))
        keys = dict(iter(session.execute(text("SELECT tenant, tenant_id FROM api_keys")).all()))
        gone = dict(iter(session.execute(text("SELECT name, id FROM deleted_tenants")).all()))
        events = dict(iter(session.execute(text("SELECT event_id, tenant_id FROM usage_events")).all()))
        invoices = dict(iter(session.execute(text("SELECT id, tenant_id FROM invoices")).all()))
        assert tenants.find_billed_tenant(session, "acme").id == ids["acme"]
        assert tenants.find_billed_tenant(session, "initech").id == gone["initech"]
    assert keys == ids
    assert len({*ids.values(), *gone.values()}) == 4
    assert gone.keys() == {"acme", "initech"}
    assert events == {
        "before": gone["acme"],
        "after": ids["acme"],
        "globex": ids["globex"],
        "gone": gone["initech"],
    }
    assert invoices == {
        "old": gone["acme"],
        "both": gone["acme"],  # it shows use of the deleted one
        "new": ids["acme"],
        "first": ids["globex"],
        "last": gone["initech"],
    }
    command.downgrade(config(old_database.url), "0003")


def stored(moment: datetime) -> str:
    """Return a moment in the form that both databases store and compare."""
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")
