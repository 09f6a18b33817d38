"""Tenants, keys, usage and bills as tables; amounts are printed as the server wrote them."""

from collections.abc import Sequence
from typing import Any

from hmi_cli.render.output import NONE, age, format_table


def tenants_table(tenants: Sequence[dict[str, Any]]) -> str:
    """Return one line for each tenant; deleted ones with the date of their deletion."""
    deleted = any("deletedAt" in tenant for tenant in tenants)
    rows = [
        [
            tenant["name"],
            tenant["id"],
            age(tenant.get("createdAt")),
            *([tenant["deletedAt"][:10]] if deleted else []),
        ]
        for tenant in tenants
    ]
    return format_table(["NAME", "ID", "AGE", *(["DELETED"] if deleted else [])], rows)


def keys_table(keys: Sequence[dict[str, Any]]) -> str:
    """Return one line for each key, without the secret."""
    rows = [
        [
            key["id"],
            key.get("name") or NONE,
            "revoked" if key.get("revokedAt") else "active",
            str(key.get("lastUsedOn") or NONE),
            age(key.get("createdAt")),
        ]
        for key in keys
    ]
    return format_table(["ID", "NAME", "STATE", "LAST USED", "AGE"], rows)


def prices_table(prices: Sequence[dict[str, Any]]) -> str:
    """Return one line for each price."""
    rows = [
        [price[field] for field in ("meter", "unitPrice", "currency", "effectiveFrom")] for price in prices
    ]
    return format_table(["METER", "UNIT PRICE", "CURRENCY", "FROM"], rows)


Answer = dict[str, Any]
_HEADERS = {"tenantId": "TENANT ID"}


def usage_table(lines: Sequence[Answer]) -> str:
    """Return one line for each sum, with the columns that the report is split by."""
    split = [name for name in ("start", "tenant", "adapter") if any(line.get(name) for line in lines)]
    if len({line.get("tenantId") for line in lines}) > len({line.get("tenant") for line in lines}):
        split.insert(split.index("tenant") + 1, "tenantId")  # several tenants have had this name
    headers = [*(_HEADERS.get(name, name.upper()) for name in split), "METER", "QUANTITY"]
    rows = [
        [*(str(line.get(name) or "-") for name in split), line["meter"], f"{line['quantity']:,}"]
        for line in lines
    ]
    return format_table(headers, rows)


def bill_table(bill: Answer) -> str:
    """Return a bill: its period, a line for each meter and price, its parts by adapter, and the total."""
    start, end = _date_or_time(bill["from"]), _date_or_time(bill["to"])
    head = f"{bill['tenant']}: {start} to {end}, in {bill['currency']}"
    rows = []
    for line in bill["lines"]:
        quantity = f"{line['quantity']:,}"
        rows.append([line["meter"], "", quantity, line["unitPrice"], "", line["amount"], line["note"]])
        rows += [
            ["", part["adapter"] or "-", f"{part['quantity']:,}", "", part["amount"], "", part["note"]]
            for part in line["parts"]
        ]
    headers = ["METER", "ADAPTER", "QUANTITY", "UNIT PRICE", "EXACT", "AMOUNT", "NOTE"]
    table = format_table(headers, rows)
    return f"{head}\n{table}\ntotal {bill['total']} {bill['currency']}"


def _date_or_time(time: str) -> str:
    """Return a time as the server wrote it; midnight in UTC as the date alone."""
    return time.removesuffix("T00:00:00Z")
