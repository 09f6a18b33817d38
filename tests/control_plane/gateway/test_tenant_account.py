"""A tenant's usage, bill and invoices at a gateway process, the only one that tenants of a cluster reach."""

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hmi_control_plane import app
from hmi_control_plane.api import usage as usage_api
from hmi_control_plane.app import create_app
from hmi_control_plane.settings import Part, Settings

MARCH, APRIL = "2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z"


@pytest.fixture
def gateway(settings: Settings, cluster: Any) -> Iterator[TestClient]:
    """A gateway process beside the control plane, on the same database; it has no admin key."""
    alone = settings.model_copy(
        update={"usage_dir": settings.usage_dir / "gateway", "admin_key": None, "currency": "EUR"}
    )
    with TestClient(create_app(alone, Part.GATEWAY), raise_server_exceptions=False) as started:
        yield started


@pytest.fixture
def key(acme: Any) -> dict[str, str]:
    """The headers of a tenant that has trained."""
    return {"Authorization": f"Bearer {acme.key}"}


def test_usage_and_bill_are_read_at_the_gateway(gateway: TestClient, key: dict[str, str]) -> None:
    items = gateway.get("/v1/usage", headers=key).json()["items"]
    assert {item["meter"] for item in items} == {"training_seconds"}
    bill = gateway.get("/v1/bill", headers=key).json()
    assert (bill["tenant"], bill["currency"]) == ("acme", "EUR")


def test_only_its_tenant_reads_a_final_invoice_at_the_gateway(
    gateway: TestClient, key: dict[str, str], cluster: Any, other_tenant: Any
) -> None:
    draft = cluster.admin("POST", "/invoices", {"tenant": "acme", "from": MARCH, "to": APRIL})
    cluster.admin("POST", f"/invoices/{draft['id']}/finalize")
    path = f"/v1/invoices/{draft['id']}"
    assert gateway.get(path, headers=key).json()["state"] == "final"
    assert gateway.get(path, headers={"Authorization": f"Bearer {other_tenant.key}"}).status_code == 404


def test_a_tenant_lists_its_own_invoices_without_drafts(
    gateway: TestClient, key: dict[str, str], cluster: Any, other_tenant: Any
) -> None:
    months = [f"2026-0{month}-01T00:00:00Z" for month in range(1, 6)]
    ids = []
    for start, end in itertools.pairwise(months):
        draft = cluster.admin("POST", "/invoices", {"tenant": "acme", "from": start, "to": end})
        ids.append(draft["id"])
    for invoice_id in ids[:3]:
        cluster.admin("POST", f"/invoices/{invoice_id}/finalize")
    cluster.admin("POST", f"/invoices/{ids[0]}/void")

    first = gateway.get("/v1/invoices?limit=2", headers=key).json()
    rest = gateway.get(f"/v1/invoices?limit=2&cursor={first['nextCursor']}", headers=key).json()
    assert [item["id"] for item in first["items"] + rest["items"]] == sorted(ids[:3])
    assert rest["nextCursor"] is None
    void = gateway.get("/v1/invoices?state=void", headers=key).json()["items"]
    assert [item["id"] for item in void] == ids[:1]
    assert gateway.get("/v1/invoices?state=draft", headers=key).json()["items"] == []
    headers = {"Authorization": f"Bearer {other_tenant.key}"}
    assert gateway.get("/v1/invoices", headers=headers).json()["items"] == []
    assert gateway.get("/v1/invoices?tenant=acme", headers=headers).status_code == 422


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/bill", "/v1/invoices", f"/v1/invoices/{'0' * 32}"])
def test_usage_and_invoices_need_a_key(gateway: TestClient, path: str) -> None:
    assert gateway.get(path).status_code == 401


def test_the_gateway_has_no_admin_routes(gateway: TestClient) -> None:
    headers = {"Authorization": "Bearer admin-key-of-the-tests"}
    for path in ("/admin/v1/usage", "/admin/v1/prices", "/admin/v1/invoices"):
        assert gateway.get(path, headers=headers).status_code == 404


def test_only_a_few_reports_run_concurrently(
    gateway: TestClient, key: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, going, most, enough = threading.Lock(), 0, 0, threading.Event()
    report = usage_api.build_report

    def counted(*arguments: Any) -> Any:
        nonlocal going, most
        with guard:
            going += 1
            most = max(most, going)
            if going == 4:
                enough.set()
        enough.wait(20)
        try:
            return report(*arguments)
        finally:
            with guard:
                going -= 1

    monkeypatch.setattr("hmi_control_plane.api.usage.build_report", counted)
    callers = [
        threading.Thread(target=gateway.get, args=("/v1/usage",), kwargs={"headers": key}) for _ in range(12)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert most == 4


def test_a_report_that_finds_no_slot_is_503(
    gateway: TestClient, key: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "MAX_REPORT_WAIT_SECONDS", 0.05)
    entered, let_go = threading.Semaphore(0), threading.Event()
    report = usage_api.build_report

    def blocked(*arguments: Any) -> Any:
        entered.release()
        let_go.wait(20)
        return report(*arguments)

    monkeypatch.setattr("hmi_control_plane.api.usage.build_report", blocked)
    callers = [
        threading.Thread(target=gateway.get, args=("/v1/usage",), kwargs={"headers": key}) for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for _ in callers:
        assert entered.acquire(timeout=20)
    refused = gateway.get("/v1/usage", headers=key)
    let_go.set()
    for caller in callers:
        caller.join()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "TooManyReports")
    assert refused.headers["retry-after"]
