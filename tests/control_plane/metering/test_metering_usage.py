"""Usage reports: sums by window and group, page by page, on both databases."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hmi_api.errors import InvalidInput
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import Meter
from hmi_control_plane.catalog.tenants import ensure_tenant, find_billed_tenant
from hmi_control_plane.metering.events import UsageEvent
from hmi_control_plane.metering.records import record_events, sum_usage
from hmi_control_plane.metering.reports import UsageGroup, UsageInterval, UsageLine, UsageQuery, build_report

START = datetime(2026, 1, 30, 23, 0, tzinfo=UTC)
END = START + timedelta(days=60)


@pytest.fixture
def ledger(database: Database, make_event: Callable[..., UsageEvent]) -> Database:
    """A catalog with an event every six hours: two tenants, two adapters, two meters."""
    with database.write() as session:
        for name in ("acme", "bolt"):
            ensure_tenant(session, name)
    events = [
        make_event(
            1,
            id=f"{step}",
            time=START + timedelta(hours=6 * step),
            tenant=("acme", "bolt")[step % 2],
            adapter=("spam", None)[step // 2 % 2],
            meter=(Meter.ROWS, Meter.PROMPT_TOKENS)[step // 4 % 2],
        )
        for step in range(160)
    ]
    with database.write() as session:
        record_events(session, events, END)
    return database


def id_of(database: Database, tenant: str) -> str:
    """Return a tenant's id."""
    with database.read() as session:
        return find_billed_tenant(session, tenant).id


def all_lines(database: Database, **query: Any) -> list[UsageLine]:
    """Read all pages of a report."""
    lines: list[UsageLine] = []
    after = None
    while True:
        with database.read() as session:
            page = build_report(session, UsageQuery(START, END, after=after, **query))
        assert len(page.lines) <= query.get("limit", 100)
        lines += page.lines
        after = page.next
        if after is None:
            return lines


def test_meters_are_never_added_together(ledger: Database) -> None:
    lines = all_lines(ledger)
    assert [(line.meter, line.quantity) for line in lines] == [(Meter.PROMPT_TOKENS, 80), (Meter.ROWS, 80)]
    assert {(line.start, line.tenant, line.adapter) for line in lines} == {(None, None, None)}


def test_groups_split_and_filters_select(ledger: Database) -> None:
    lines = all_lines(ledger, groups=frozenset(UsageGroup), tenant_id=id_of(ledger, "bolt"), meter=Meter.ROWS)
    assert [(line.tenant, line.adapter, line.quantity) for line in lines] == [
        ("bolt", None, 20),
        ("bolt", "spam", 20),
    ]
    [line] = all_lines(ledger, tenant_id=id_of(ledger, "acme"), adapter="spam", meter=Meter.ROWS)
    assert line.quantity == 20


@pytest.mark.parametrize(
    ("bucket", "first"),
    [
        (UsageInterval.HOUR, "2026-01-30T23"),
        (UsageInterval.DAY, "2026-01-30T00"),
        (UsageInterval.MONTH, "2026-01-01T00"),
    ],
)
def test_intervals_start_at_full_units_in_utc(ledger: Database, bucket: UsageInterval, first: str) -> None:
    lines = all_lines(ledger, bucket=bucket, meter=Meter.ROWS)
    assert lines[0].start == f"{first}:00:00Z"
    assert sum(line.quantity for line in lines) == 80
    starts = [line.start for line in lines]
    assert starts == sorted(set(starts), key=str)


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_pages_together_are_the_report(ledger: Database, limit: int) -> None:
    whole = all_lines(ledger, bucket=UsageInterval.DAY, groups=frozenset(UsageGroup), limit=1000)
    assert all_lines(ledger, bucket=UsageInterval.DAY, groups=frozenset(UsageGroup), limit=limit) == whole


def test_a_window_is_half_open(ledger: Database) -> None:
    with ledger.read() as session:
        page = build_report(session, UsageQuery(START, START + timedelta(hours=6)))
    assert sum(line.quantity for line in page.lines) == 1


def test_a_tenants_usage_is_summed_by_adapter_and_meter(ledger: Database) -> None:
    acme = id_of(ledger, "acme")
    with ledger.read() as session:
        found = {(q.adapter, q.meter): q.quantity for q in sum_usage(session, acme, START, END)}
    assert found == {
        (adapter, meter): 20 for adapter in ("spam", None) for meter in (Meter.ROWS, Meter.PROMPT_TOKENS)
    }


@pytest.mark.parametrize("cursor", ["", "x", "bnVsbA==", "WzEsMiwzLDQsNV0=", "é"])
def test_a_wrong_cursor_or_window_is_refused(ledger: Database, cursor: str) -> None:
    with ledger.read() as session:
        with pytest.raises(InvalidInput, match="InvalidCursor"):
            build_report(session, UsageQuery(START, END, after=cursor))
        with pytest.raises(InvalidInput, match="EmptyWindow"):
            build_report(session, UsageQuery(END, START))


def test_a_tenant_reads_its_own_usage_and_an_administrator_all(ledger: Database, cluster: Any) -> None:
    cluster.internal("PUT", "/tenants/acme")
    key = cluster.admin("POST", "/tenants/acme/keys", {"name": "test"})["key"]
    window = {"from": START.isoformat(), "to": END.isoformat(), "meter": "rows"}
    answer = cluster.client.get("/v1/usage", params=window, headers={"Authorization": f"Bearer {key}"})
    line = {"start": None, "tenant": None, "tenantId": None, "adapter": None, "meter": "rows", "quantity": 40}
    assert answer.json() == {"items": [line], "nextCursor": None}
    everyone = cluster.admin("GET", "/usage", params=window | {"group_by": ["tenant"]})
    assert [item["quantity"] for item in everyone["items"]] == [40, 40]


WRONG_PARAMETERS: list[dict[str, str]] = [
    {"from": "yesterday"},
    {"from": "2026-01-01T00:00:00"},
    {"from": "0001-01-01T00:00:00+14:00"},
    {"to": "9999-12-31T23:59:59-14:00"},
    {"bucket": "year"},
    {"group_by": "colour"},
    {"limit": "0"},
    {"tenant": "a\x00b"},
    {"tenant": "tenant_1"},
    {"unknown": "1"},
]


def test_wrong_parameters_are_refused(cluster: Any) -> None:
    headers = {"Authorization": "Bearer admin-key-of-the-tests"}
    for parameters in WRONG_PARAMETERS:
        response = cluster.client.get("/admin/v1/usage", params=parameters, headers=headers)
        assert response.status_code == 422, parameters
        assert response.json()["error"]["type"] == "invalid_request_error"
