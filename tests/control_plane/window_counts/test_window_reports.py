"""Reports of windows: each counted once, within bounds, for as long as is set, until Domain or tenant go."""

import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from hmi_control_plane.catalog.database import Database, utc_now
from hmi_control_plane.catalog.refreshes import delete_older
from hmi_control_plane.catalog.resources import current_version, get_resource
from hmi_control_plane.catalog.tables import (
    DomainLookupsRow,
    DomainRow,
    PendingWindowReport,
    WindowCountRow,
    WindowReporter,
)
from hmi_control_plane.settings import WindowCountSettings
from hmi_control_plane.window_counts import merging
from hmi_control_plane.window_counts.merging import WindowCountMerger
from hmi_control_plane.window_counts.reports import record_report


def rows(database: Database, table: Any) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_reports_are_summed(traffic: Any) -> None:
    traffic.sent({"acme": {1: 2, 2: 1}}, lookups=4, hits=1)
    traffic.sent({"acme": {2: 5, 9: 1}}, lookups=6, hits=4)
    traffic.sent({"acme": {9: 1}}, incarnation="two", sequence=1)
    counts = traffic.read(traffic.run())
    assert traffic.windows(traffic.run()) == {2: 6, 1: 2, 9: 2}
    assert (counts.total, counts.admitted, counts.windows) == (10, 3, 3)
    assert (counts.least_tenants, counts.days) == (3, 30)
    assert traffic.lookups() == (10, 5, 0.5)


def test_a_report_that_is_sent_again_counts_once(traffic: Any) -> None:
    first = traffic.sent({"acme": {1: 1}}, lookups=1)
    second = traffic.sent({"acme": {1: 1}}, lookups=1)
    for report in (first, second, first):
        traffic.send(report)
    traffic.merge()
    traffic.send(second)
    assert traffic.windows(traffic.run()) == {1: 2}
    assert traffic.lookups()[0] == 2


def test_merging_waits_for_a_refresh_that_deletes_a_version(traffic: Any, database: Database) -> None:
    if database.engine.dialect.name == "sqlite":
        pytest.skip("on SQLite a writer has the whole database to itself")
    traffic.sent({"acme": {1: 1}}, lookups=1)
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with ThreadPoolExecutor(1) as threads:
        with database.write() as session:
            row = get_resource(session, DomainRow, "acme", "trade")
            current = current_version(session, row)
            assert current is not None
            delete_older(session, row, current, 0)
            merging = threads.submit(traffic.merge)
            while not merging.done():
                with database.read() as watcher:
                    if watcher.scalar(waiting):
                        break
        assert merging.result() == 0
    assert rows(database, PendingWindowReport) == rows(database, DomainLookupsRow) == 0


def test_the_same_report_from_two_connections_counts_once(traffic: Any, database: Database) -> None:
    report = traffic.report({"acme": {1: 1}})

    def record(_: int) -> None:
        with database.write() as session:
            record_report(session, report)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(record, range(8)))
    assert traffic.windows(traffic.run()) == {1: 1}


def test_merges_at_the_same_time_count_once(traffic: Any, database: Database) -> None:
    for _ in range(20):
        traffic.sent({"acme": {1: 1}, "bolt": {2: 1}}, lookups=2)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda _: traffic.merge(), range(3)))
    assert traffic.windows(traffic.run()) == {1: 20}
    assert traffic.lookups()[0] == 40
    assert rows(database, PendingWindowReport) == 0


def test_most_limits_the_windows_to_the_most_frequent(traffic: Any) -> None:
    traffic.sent({"acme": {key: key for key in range(1, 10)}})
    counts = traffic.read(traffic.run(), most=2)
    assert traffic.windows(traffic.run(), most=2) == {9: 9, 8: 8}
    assert (counts.admitted, counts.total) == (9, 45)


def test_few_rows_are_merged_at_once(traffic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    stored = merging._stored

    def count(session: Any, keys: Any) -> Any:
        found = stored(session, keys)
        read.append(len(found))
        return found

    monkeypatch.setattr(merging, "_WINDOWS_AT_ONCE", 7)
    for factor in (1, 2):
        traffic.sent({f"tenant{number}": {1: factor, 2 + number: 1} for number in range(6)})
        traffic.merge()
        monkeypatch.setattr(merging, "_stored", count)
    assert (sum(read), max(read)) == (6, 1)  # two windows stored and two new ones, of each tenant
    assert traffic.windows(traffic.run()) == {1: 18}


def test_a_tenants_day_is_bounded_to_its_most_frequent_windows(traffic: Any) -> None:
    traffic.sent({"acme": {1: 1, 2: 5, 3: 3}})
    assert traffic.merge(windows_per_day=2) == 1
    assert traffic.windows(traffic.run()) == {2: 5, 3: 3}


def test_a_domain_is_bounded_and_the_longest_rows_are_cut(traffic: Any, database: Database) -> None:
    traffic.sent({"acme": {key: 100 + key for key in range(50)}, "bolt": {1: 1, 2: 1}})
    assert traffic.merge(windows_per_domain=20) == 50 - 16
    with database.read() as session:
        sizes = sorted(session.scalars(select(WindowCountRow.windows)))
    assert sizes == [2, 16]  # nine tenths of the room: the short row stays whole
    assert traffic.windows(traffic.run()) == {key: 100 + key for key in range(49, 33, -1)}


def test_a_domains_rows_are_bounded_and_the_oldest_days_are_deleted(traffic: Any, database: Database) -> None:
    traffic.sent({f"tenant{number}": {1: 1, 2: 1} for number in range(6)})
    traffic.merge()
    with database.write() as session:  # as if that had been yesterday
        session.execute(update(WindowCountRow).values(day=_ago(1)))
    traffic.sent({"acme": {1: 7}, "bolt": {5: 1}} | {f"tenant{number}": {3: 1, 4: 1} for number in range(3)})
    assert traffic.merge(rows_per_domain=10) == 2 * 2
    with database.read() as session:
        days = sorted(session.scalars(select(WindowCountRow.day)))
    assert days == [_ago(1)] * 4 + [_ago(0)] * 5  # nine tenths of the room
    assert traffic.windows(traffic.run()) == {1: 11, 2: 4, 3: 3, 4: 3}
    assert traffic.merge(rows_per_domain=10) == 0


def test_more_tenants_than_windows_leave_the_longest_rows_of_the_day(
    traffic: Any, database: Database
) -> None:
    traffic.sent({f"tenant{number}": {1: 1} for number in range(9)} | {"acme": {1: 3, 2: 2}})
    assert traffic.merge(windows_per_domain=5) == 9 - 3
    with database.read() as session:
        assert sorted(session.scalars(select(WindowCountRow.windows))) == [1, 1, 1, 2]
    assert traffic.windows(traffic.run()) == {1: 6, 2: 2}


def test_counts_are_kept_for_the_days_that_are_set(traffic: Any, database: Database) -> None:
    traffic.sent({"acme": {1: 1, 2: 1}})
    traffic.merge()
    with database.write() as session:  # as if that had been yesterday
        session.execute(update(WindowCountRow).values(day=_ago(1)))
    traffic.sent({"acme": {2: 1}})
    traffic.merge()
    run = traffic.run()
    assert traffic.windows(run) == {2: 2, 1: 1}
    WindowCountMerger(database, WindowCountSettings(days=2)).delete_old()
    assert traffic.windows(run) == {2: 2, 1: 1}
    WindowCountMerger(database, WindowCountSettings(days=1)).delete_old()
    assert traffic.windows(run) == {2: 1}


def test_days_that_are_too_old_are_not_read_before_they_are_deleted(traffic: Any, database: Database) -> None:
    traffic.sent({"acme": {1: 1}})
    traffic.merge()
    with database.write() as session:
        session.execute(update(WindowCountRow).values(day=_ago(30)))
    assert traffic.windows(traffic.run()) == {}


def test_silent_reporters_are_forgotten(traffic: Any, database: Database) -> None:
    traffic.sent({"acme": {1: 1}})
    with database.write() as session:
        session.execute(update(WindowReporter).values(reported_at=utc_now() - timedelta(days=31)))
    WindowCountMerger(database, WindowCountSettings()).delete_old()
    assert rows(database, WindowReporter) == 0


def test_counts_are_erased_with_their_domain(traffic: Any, database: Database) -> None:
    traffic.sent({"acme": {1: 1}}, lookups=1)
    traffic.merge()
    late = traffic.report({"acme": {1: 1}})
    traffic.cluster.internal("DELETE", "/domains/acme/trade")
    traffic.send(late)
    traffic.merge()
    assert rows(database, WindowCountRow) == rows(database, DomainLookupsRow) == 0
    traffic.cluster.domain()
    assert traffic.windows(traffic.run()) == {}


def test_counts_belong_to_the_layers_that_answered(traffic: Any) -> None:
    """A window's key depends on the base model's vocabulary, which new layers may have changed."""
    traffic.sent({"acme": {1: 1}}, lookups=5, hits=5)
    traffic.merge()
    traffic.cluster.publish_domain("trade", spec="2")
    traffic.sent({"acme": {2: 1}}, lookups=2, hits=0)
    run = traffic.run()
    assert traffic.windows(run) == {2: 1}
    assert traffic.lookups() == (2, 0, 0.0)


def test_a_version_with_the_same_layers_continues_the_counts_with_new_statistics(traffic: Any) -> None:
    traffic.sent({"acme": {1: 1}}, lookups=5, hits=5)
    traffic.merge()
    traffic.cluster.publish_domain("trade", spec="2", layers="layers-acme-trade-1")
    assert traffic.windows(traffic.run()) == {1: 1}
    assert traffic.lookups() == (0, 0, None)


def test_the_statistics_are_in_the_admin_list_and_in_the_view_only_on_request(traffic: Any) -> None:
    traffic.sent({}, lookups=4, hits=3)
    traffic.merge()
    (listed,) = traffic.cluster.admin("GET", "/domains")["items"]
    assert listed["domain"]["lookups"] == {"lookups": 4, "hits": 3, "hitRate": 0.75}
    # An operator of an older version refuses fields that it does not know.
    assert set(traffic.cluster.internal("GET", "/domains/acme/trade")) == {"record", "current"}


def test_a_stored_report_that_cannot_be_read_stops_no_others(traffic: Any, database: Database) -> None:
    with database.write() as session:
        for data in (b"not compressed", zlib.compress(b"{}")):
            session.add(PendingWindowReport(received_at=utc_now(), data=data))
    traffic.sent({"acme": {1: 1}})
    traffic.merge()
    assert traffic.windows(traffic.run()) == {1: 1}
    assert rows(database, PendingWindowReport) == 0


def test_a_run_reads_only_its_own_domain_and_only_while_it_is_open(traffic: Any) -> None:
    cluster = traffic.cluster
    traffic.sent({"acme": {1: 1}})
    cluster.domain("other")
    other = traffic.run("other")
    assert traffic.windows(other) == {}
    cluster.internal("POST", f"/runs/{other}/fail", {"reason": "Why", "message": "So."})
    assert _refused(cluster, other) == (409, "RunFinished")
    cluster.declare_adapter("spam")
    assert _refused(cluster, cluster.adapter_run("spam")["id"]) == (400, "NoDomainRun")
    assert _refused(cluster, "00ff") == (404, "UnknownRun")
    replaced = cluster.domain_run("trade", spec="3", uid="another object of this name")["id"]
    assert _refused(cluster, replaced) == (404, "UnknownDomain")


def test_a_run_before_the_first_version_has_nothing_to_read(traffic: Any) -> None:
    traffic.cluster.declare_domain("new")
    counts = traffic.read(traffic.run("new"))
    assert (counts.layers_digest, counts.windows, counts.admitted) == ("", 0, 0)


def test_hits_above_the_lookups_are_cut(traffic: Any) -> None:
    traffic.sent({}, lookups=4, hits=9)
    traffic.merge()
    assert traffic.lookups() == (4, 4, 1.0)


@pytest.mark.parametrize("most", [0, 1_000_001])
def test_the_number_of_windows_is_bounded(traffic: Any, most: int) -> None:
    headers = {"Authorization": "Bearer internal-token-of-the-tests"}
    path = f"/internal/v1/runs/{traffic.run()}/window-counts"
    assert traffic.cluster.client.get(path, params={"most": most}, headers=headers).status_code == 422


def _refused(cluster: Any, run: str) -> tuple[int, str]:
    headers = {"Authorization": "Bearer internal-token-of-the-tests"}
    answer = cluster.client.get(f"/internal/v1/runs/{run}/window-counts", headers=headers)
    return answer.status_code, answer.json()["error"]["code"]


def _ago(days: int) -> Any:
    return (utc_now() - timedelta(days=days)).date()
