"""Billing over HTTP: amounts are strings, the price list, bills and invoices."""

from datetime import UTC, datetime
from typing import Any

import pytest

ADMIN = {"Authorization": "Bearer admin-key-of-the-tests"}
MARCH, APRIL = "2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z"


@pytest.fixture
def tenant_headers(cluster: Any) -> dict[str, str]:
    """The headers of a tenant that trained an adapter for two seconds, this month."""
    cluster.domain()
    cluster.adapter("spam")
    key = cluster.admin("POST", "/tenants/acme/keys", {"name": "test"})["key"]
    return {"Authorization": f"Bearer {key}"}


def test_a_bill_is_computed_from_prices_and_usage(cluster: Any, tenant_headers: dict[str, str]) -> None:
    price = {"meter": "training_seconds", "unitPrice": "0.0125", "effectiveFrom": MARCH}
    assert cluster.admin("PUT", "/prices", price) == {**price, "unit": "second", "currency": "USD"}
    cluster.admin("PUT", "/prices", price)
    assert len(cluster.admin("GET", "/prices")["items"]) == 1
    mine = cluster.client.get("/v1/bill", headers=tenant_headers).json()
    assert mine == cluster.admin("GET", "/bills/acme")
    [line] = mine["lines"]
    assert (line["quantity"], line["unit"]) == (2, "second")
    assert (line["unitPrice"], line["amount"], mine["total"]) == ("0.0125", "0.02", "0.02")
    [part] = line["parts"]
    assert (part["adapter"], part["quantity"], part["amount"], part["note"]) == ("spam", 2, "0.025", "")
    assert "summed over adapters" in mine["rounding"]
    assert "half to even" in mine["rounding"]


def test_lines_of_an_invoice_have_parts_with_exact_amounts(
    cluster: Any, tenant_headers: dict[str, str]
) -> None:
    price = {"meter": "training_seconds", "unitPrice": "0.004", "effectiveFrom": MARCH}
    cluster.admin("PUT", "/prices", price)
    for name in ("topic", "tone"):
        cluster.adapter(name)  # two seconds each
    now = datetime.now(UTC).isoformat()
    draft = cluster.admin("POST", "/invoices", {"tenant": "acme", "from": MARCH, "to": now})
    [line] = draft["lines"]
    assert (line["adapter"], line["quantity"], line["amount"]) == (None, 6, "0.02")
    assert [(part["adapter"], part["amount"]) for part in line["parts"]] == [
        ("spam", "0.008"),
        ("tone", "0.008"),
        ("topic", "0.008"),
    ]
    assert {(part["from"], part["to"]) for part in line["parts"]} == {(draft["from"], draft["to"])}
    cluster.admin("POST", f"/invoices/{draft['id']}/finalize")
    shown = cluster.client.get(f"/v1/invoices/{draft['id']}", headers=tenant_headers).json()
    assert (shown["lines"], shown["total"]) == (draft["lines"], "0.02")


def test_an_invoice_is_drafted_finalized_and_voided(cluster: Any, tenant_headers: dict[str, str]) -> None:
    wanted = {"tenant": "acme", "from": MARCH, "to": APRIL, "currency": "EUR"}
    draft = cluster.admin("POST", "/invoices", wanted)
    assert (draft["state"], draft["total"], draft["from"]) == ("draft", "0.00", MARCH)
    path = f"/v1/invoices/{draft['id']}"
    assert cluster.client.get(path, headers=tenant_headers).status_code == 404
    assert cluster.admin("POST", f"/invoices/{draft['id']}/finalize")["state"] == "final"
    assert cluster.client.get(path, headers=tenant_headers).json()["state"] == "final"
    assert cluster.admin("GET", "/invoices", params={"tenant": "acme"})["items"][0]["id"] == draft["id"]
    assert cluster.admin("POST", f"/invoices/{draft['id']}/void")["state"] == "void"
    assert cluster.admin("GET", f"/invoices/{draft['id']}")["voidedAt"] is not None


def test_a_tenant_does_not_see_a_draft_that_was_voided(cluster: Any, tenant_headers: dict[str, str]) -> None:
    wanted = {"tenant": "acme", "from": MARCH, "to": APRIL}
    invoice = cluster.admin("POST", "/invoices", wanted)["id"]
    cluster.admin("POST", f"/invoices/{invoice}/void")
    assert cluster.client.get(f"/v1/invoices/{invoice}", headers=tenant_headers).status_code == 404
    assert cluster.client.get("/v1/invoices", headers=tenant_headers).json()["items"] == []
    assert cluster.admin("GET", f"/invoices/{invoice}")["state"] == "void"


def finalize(cluster: Any, currency: str) -> Any:
    """Draft and finalize an invoice for acme's usage so far; return the second response."""
    wanted = {"tenant": "acme", "from": MARCH, "to": datetime.now(UTC).isoformat(), "currency": currency}
    invoice = cluster.admin("POST", "/invoices", wanted)["id"]
    answer = cluster.client.post(f"/admin/v1/invoices/{invoice}/finalize", headers=ADMIN)
    cluster.admin("POST", f"/invoices/{invoice}/void")
    return answer


def test_usage_in_a_currency_without_prices_is_not_invoiced_at_zero(
    cluster: Any, tenant_headers: dict[str, str]
) -> None:
    price = {"meter": "training_seconds", "unitPrice": "0.0125", "effectiveFrom": MARCH}
    cluster.admin("PUT", "/prices", {**price, "currency": "EUR"})
    refused = finalize(cluster, "EUT")  # mistyped
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "NoPrice")
    assert "no price at all in EUT" in refused.json()["error"]["message"]
    # The first price takes effect too late.
    cluster.admin("PUT", "/prices", {**price, "currency": "CHF", "effectiveFrom": "2100-01-01"})
    refused = finalize(cluster, "CHF")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "NoPrice")
    assert "2100-01-01" in refused.json()["error"]["message"]
    # Free on purpose: another meter has a price, or this one has the price 0.
    cluster.admin("PUT", "/prices", {**price, "currency": "CHF", "meter": "rows"})
    free = finalize(cluster, "CHF").json()
    assert (free["state"], free["total"]) == ("final", "0.00")
    assert free["lines"][0]["note"]
    cluster.admin("PUT", "/prices", {**price, "currency": "SEK", "unitPrice": "0"})
    assert finalize(cluster, "SEK").json()["total"] == "0.00"
    assert finalize(cluster, "EUR").json()["total"] == "0.02"


def test_a_tenant_without_usage_has_an_empty_invoice(cluster: Any) -> None:
    cluster.admin("POST", "/tenants", {"name": "acme"})
    assert finalize(cluster, "EUR").json()["total"] == "0.00"


def test_an_amount_that_cannot_be_stored_is_a_conflict(cluster: Any, tenant_headers: dict[str, str]) -> None:
    cluster.admin(
        "PUT",
        "/prices",
        {"meter": "training_seconds", "unitPrice": "9999999999999999", "effectiveFrom": MARCH},
    )
    body = {"tenant": "acme", "from": MARCH, "to": datetime.now(UTC).isoformat()}
    answer = cluster.client.post("/admin/v1/invoices", json=body, headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "AmountTooLarge")


@pytest.mark.parametrize("given", ["-0", "-0.00", "-0e3"])
def test_zero_has_no_sign(cluster: Any, given: str) -> None:
    body = {"meter": "rows", "unitPrice": given}
    assert not cluster.admin("PUT", "/prices", body)["unitPrice"].startswith("-")


BILL_PERIODS = [
    ("2026-03-01T00:00:00+02:00", "2026-02-28T22:00:00Z", "2026-03-31T22:00:00Z"),
    ("2026-03-01T00:00:00-05:00", "2026-03-01T05:00:00Z", "2026-04-01T05:00:00Z"),
    ("2026-01-31T23:00:00-05:00", "2026-02-01T04:00:00Z", "2026-03-01T04:00:00Z"),
    ("2026-01-31", "2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z"),
]


@pytest.mark.parametrize(("given", "start", "end"), BILL_PERIODS)
def test_a_bill_ends_a_month_after_its_start_at_the_callers_offset(
    cluster: Any, tenant_headers: dict[str, str], given: str, start: str, end: str
) -> None:
    bill = cluster.admin("GET", "/bills/acme", params={"from": given})
    assert (bill["from"], bill["to"]) == (start, end)


NO_PRICES: list[Any] = [
    *("1_000", " 1", "\u0661", "1,5", "1."),
    *("-1", "NaN", "Infinity", "1e400", "0.0000000000001", "", "a", "1" * 40),
    *(0.5, 1, None, ["1"]),
]


def test_invalid_prices_are_refused(cluster: Any) -> None:
    for price in NO_PRICES:
        body = {"meter": "rows", "unitPrice": price}
        response = cluster.client.put("/admin/v1/prices", json=body, headers=ADMIN)
        assert response.status_code == 422, response.text
        assert response.json()["error"]["type"] == "invalid_request_error"


WRONG_REQUESTS: list[tuple[str, dict[str, str]]] = [
    ("/bills/acme", {"from": "9999-12-31T00:00:00Z"}),
    ("/bills/acme", {"from": APRIL, "to": MARCH}),
    ("/bills/acme", {"currency": "euro"}),
    ("/bills/Acme%00", {}),
    ("/invoices", {"cursor": "zzz"}),
    ("/invoices", {"limit": "100000"}),
    ("/invoices/%00", {}),
    ("/invoices/" + "0" * 32, {}),
]


def test_invalid_billing_requests_are_refused(cluster: Any) -> None:
    for path, parameters in WRONG_REQUESTS:
        response = cluster.client.get(f"/admin/v1{path}", params=parameters, headers=ADMIN)
        assert response.status_code in {400, 404, 422}
        assert response.json()["error"]["message"]


def test_prices_and_bills_of_all_tenants_need_the_admin_key(
    cluster: Any, tenant_headers: dict[str, str]
) -> None:
    for path in ("/admin/v1/prices", "/admin/v1/bills/acme", "/admin/v1/invoices", "/admin/v1/usage"):
        assert cluster.client.get(path, headers=tenant_headers).status_code == 401
    assert cluster.client.get("/v1/bill", headers=ADMIN).status_code == 401
