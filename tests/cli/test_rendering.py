"""Tables and descriptions of objects, as in kubectl."""

from datetime import UTC, datetime

import pytest

from hmi_api.resources.kinds import DOMAIN, TASK_ADAPTER
from hmi_cli.render.accounts import bill_table, usage_table
from hmi_cli.render.output import age, amount, format_table
from hmi_cli.render.resources import describe, resource_table

ADAPTER = {
    "apiVersion": "hmi.dev/v1alpha1",
    "kind": "TaskAdapter",
    "metadata": {"name": "topic", "namespace": "seaview"},
    "spec": {
        "domainRef": {"name": "hotel", "namespace": "commons"},
        "gate": {"metric": "accuracy", "minimum": 0.9},
    },
    "status": {
        "phase": "Failed",
        "metrics": {"accuracy": 0.8125},
        "conditions": [
            {
                "type": "Accepted",
                "status": "True",
                "reason": "Valid",
                "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            },
            {
                "type": "GatePassed",
                "status": "False",
                "reason": "GateNotReached",
                "message": "accuracy is 0.8125",
            },
            {"type": "Ready", "status": "False", "reason": "NotPublished", "message": ""},
        ],
    },
}


def test_tables_line_up_and_are_never_cut() -> None:
    table = format_table(["NAME", "AGE"], [["a" * 200, "1s"], ["b", "12d"]])
    assert table.splitlines()[2] == "b" + " " * 202 + "12d"


@pytest.mark.parametrize(
    ("moment", "shown"),
    [
        ("2026-01-02T00:00:00Z", "0s"),
        ("2026-01-01T23:58:30Z", "90s"),
        ("2026-01-01T23:50:00Z", "10m"),
        ("2026-01-01T19:00:00Z", "5h"),
        ("2025-12-20T00:00:00Z", "13d"),
        (None, "<none>"),
    ],
)
def test_ages_are_formatted_as_in_kubectl(moment: str | None, shown: str) -> None:
    assert age(moment, datetime(2026, 1, 2, tzinfo=UTC)) == shown


def test_bytes_have_a_readable_unit() -> None:
    assert [amount(n) for n in (0, 1023, 1024, 5 << 20, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 MiB",
        "3.0 GiB",
    ]


def test_the_reason_is_that_of_the_failed_step() -> None:
    header, row = resource_table(TASK_ADAPTER, [ADAPTER], wide=True, namespaces=True).splitlines()
    assert header.split()[:3] == ["NAMESPACE", "NAME", "PHASE"]
    assert "GateNotReached" in row
    assert "accuracy 0.812/0.90" in row
    assert "commons/hotel" in row


def test_a_new_object_without_status_has_a_line() -> None:
    item = {"metadata": {"name": "shop"}, "spec": {}}
    assert resource_table(DOMAIN, [item], wide=True, namespaces=False).splitlines()[1].startswith("shop")


def test_describe_shows_spec_and_every_condition_with_its_message() -> None:
    text = describe(TASK_ADAPTER, ADAPTER)
    assert "minimum: 0.9" in text
    assert "accuracy is 0.8125" in text
    assert text.index("Accepted") < text.index("GatePassed")


def test_describe_shows_the_levels_of_the_tree_and_what_sharing_saves() -> None:
    levels = [
        {"domain": "bikes/road", "entries": 1204, "bytes": 4096},
        {"domain": "bikes/all", "bytes": 2048},
    ]
    shared = {"domains": 3, "savedBytesAtMost": 8192}
    domain = {"metadata": {"name": "road"}, "status": {"levels": levels, "shared": shared}}
    lines = [line.strip() for line in describe(DOMAIN, domain).splitlines()]
    at = next(at for at, line in enumerate(lines) if line.startswith("looks up in:"))
    sizes = [amount(size) for size in (4096, 2048, 8192)]
    assert lines[at : at + 3] == [
        f"looks up in:        bikes/road: 1,204 windows, {sizes[0]}",
        f"bikes/all: {sizes[1]}",
        f"shared with:        3 Domains below, which saves at most {sizes[2]}",
    ]


def test_describe_shows_the_data_read() -> None:
    read = {"use": "train", "uri": "s3://rows/a", "rows": 3, "fileCount": 1, "files": ["a.jsonl"]}
    text = describe(TASK_ADAPTER, ADAPTER | {"status": {**ADAPTER["status"], "data": [read]}})
    assert "s3://rows/a" in text
    assert "train: 3 rows of 1 files (a.jsonl)." in text


def test_usage_of_tenants_with_the_same_name_is_distinguished_by_id() -> None:
    line = {"start": None, "tenant": "acme", "adapter": None, "meter": "rows", "quantity": 3}
    lines = [{**line, "tenantId": "tenant_1"}, {**line, "tenantId": "tenant_2"}]
    head, first, second = usage_table(lines).splitlines()
    assert head.split("  ")[1].strip() == "TENANT ID"
    assert "tenant_1" in first
    assert "tenant_2" in second
    assert "TENANT ID" not in usage_table(lines[:1])


def test_a_bill_shows_the_exact_parts_of_a_line() -> None:
    line = {
        "meter": "requests",
        "quantity": 3,
        "unitPrice": "0.004",
        "amount": "0.01",
        "note": "",
        "parts": [
            {"adapter": "spam", "quantity": 2, "amount": "0.008", "note": ""},
            {"adapter": None, "quantity": 1, "amount": "0.004", "note": "late"},
        ],
    }
    bill = {"tenant": "acme", "currency": "EUR", "from": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00Z"}
    head, _, *rows, total = bill_table({**bill, "lines": [line], "total": "0.01"}).splitlines()
    assert head == "acme: 2026-11-01 to 2026-12-01, in EUR"
    assert [row.split() for row in rows] == [
        ["requests", "3", "0.004", "0.01"],
        ["spam", "2", "0.008"],
        ["-", "1", "0.004", "late"],
    ]
    assert total == "total 0.01 EUR"


def test_a_bill_shows_times_that_are_not_midnight() -> None:
    period = {"from": "2026-02-28T22:00:00Z", "to": "2026-03-31T22:00:00Z"}
    shown = bill_table({"tenant": "acme", "currency": "EUR", **period, "lines": [], "total": "0.00"})
    assert shown.splitlines()[0] == "acme: 2026-02-28T22:00:00Z to 2026-03-31T22:00:00Z, in EUR"
