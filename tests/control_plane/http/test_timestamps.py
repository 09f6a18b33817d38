"""Timestamps in requests: RFC 3339 or a date, parsed alike by every endpoint and the command line."""

from datetime import UTC, datetime
from typing import Any

import pytest

from hmi_control_plane.http.parameters import month_after, parse_timestamp

NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-01", NOVEMBER),
        ("2026-11-01T00:00:00Z", NOVEMBER),
        ("2026-11-01t00:00:00z", NOVEMBER),
        ("2026-11-01 00:00:00Z", NOVEMBER),
        ("2026-11-01T02:00:00+02:00", NOVEMBER),
        ("2026-11-01T02:00:00 02:00", NOVEMBER),  # an unescaped + of a query string
        ("2026-10-31T18:30:00-05:30", NOVEMBER),
        ("2026-11-01T00:00:00.25Z", NOVEMBER.replace(microsecond=250_000)),
        ("2026-11-01T00:00:00.123456789Z", NOVEMBER.replace(microsecond=123_456)),
        ("2028-02-29", datetime(2028, 2, 29, tzinfo=UTC)),
    ],
)
def test_a_timestamp_is_rfc_3339_or_a_date(text: str, moment: datetime) -> None:
    assert parse_timestamp(text) == moment
    assert parse_timestamp(text).tzinfo is UTC


NO_MOMENTS: list[Any] = [
    *("20261101", "2026", "1793491200", "1793491200.5", "2026-11", "2026-W45", "2026-305", "", "now"),
    *("2026-11-01T00:00:00", "2026-11-01T00:00Z", "2026-11-01T00Z", "2026-11-01Z", "20261101T000000Z"),
    *("2026-11-01T00:00:00+0200", "2026-11-01T00:00:00+2", "2026-11-01T00:00:00  02:00"),
    *("2026-11-01T00:00:00,5Z", "2026-11-01T00:00:00.Z", "2026-11-01T00:00:00Z\n", " 2026-11-01"),
    *("2026-02-29", "2026-13-01", "2026-11-01T24:00:00Z", "2026-11-01T23:59:60Z"),
    *("2026-11-01T00:00:00+24:00", "2026-11-01T00:00:00+02:60", "٢٠٢٦-١١-٠١"),
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "0000-01-01", "1969-12-31"),
    *(20261101, 2026, 1793491200.5, True, None, ["2026-11-01"]),
]


@pytest.mark.parametrize("value", NO_MOMENTS)
def test_other_values_are_refused_with_the_expected_format(value: Any) -> None:
    with pytest.raises(ValueError, match=r"RFC 3339 timestamp .* or a date|between the years"):
        parse_timestamp(value)


@pytest.mark.parametrize(
    ("moment", "later"),
    [
        ("2026-01-31T12:30:00Z", "2026-02-28T12:30:00Z"),
        ("2028-01-31", "2028-02-29"),
        ("2026-02-28", "2026-03-28"),
        ("2026-03-31", "2026-04-30"),
        ("2026-12-31", "2027-01-31"),
        ("2026-11-01", "2026-12-01"),
    ],
)
def test_a_month_after_is_the_same_day_or_the_last_one(moment: str, later: str) -> None:
    assert month_after(parse_timestamp(moment)) == parse_timestamp(later)


def test_every_endpoint_parses_timestamps_alike(cluster: Any) -> None:
    admin = {"Authorization": "Bearer admin-key-of-the-tests"}
    cluster.internal("PUT", "/tenants/acme")
    tenant = {"Authorization": f"Bearer {cluster.admin('POST', '/tenants/acme/keys', {})['key']}"}
    for path, headers in (
        ("/v1/usage", tenant),
        ("/v1/bill", tenant),
        ("/admin/v1/usage", admin),
        ("/admin/v1/bills/acme", admin),
    ):
        for name in ("from", "to"):
            for value in ("20261101", "2026", "2026-11-01T00:00:00"):
                answer = cluster.client.get(path, params={name: value}, headers=headers)
                assert answer.status_code == 422, (path, value)
                error = answer.json()["error"]
                assert error["param"] == name
                assert "RFC 3339" in error["message"]
                assert "or a date" in error["message"]
        # The + is sent as it is, and so arrives as a space.
        window = "from=2026-11-01T02:00:00+02:00&to=2026-11-02"
        answer = cluster.client.get(f"{path}?{window}", headers=headers)
        assert answer.status_code == 200, answer.text
    for body in (
        {"tenant": "acme", "from": 20261101, "to": "2026-12-01"},
        {"tenant": "acme", "from": "2026-11-01", "to": "2026"},
    ):
        answer = cluster.client.post("/admin/v1/invoices", json=body, headers=admin)
        assert (answer.status_code, "RFC 3339" in answer.text) == (422, True)
    price = {"meter": "rows", "unitPrice": "1", "effectiveFrom": 1_793_491_200}
    answer = cluster.client.put("/admin/v1/prices", json=price, headers=admin)
    assert (answer.status_code, "RFC 3339" in answer.text) == (422, True)


def test_a_bill_without_to_ends_a_month_after_from(cluster: Any) -> None:
    cluster.internal("PUT", "/tenants/acme")
    bill = cluster.admin("GET", "/bills/acme", params={"from": "2026-01-31"})
    assert (bill["from"], bill["to"]) == ("2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z")
