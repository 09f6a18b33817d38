"""Usage and bills as tables; amounts are printed as the server wrote them, never recalculated."""

from collections.abc import Sequence
from typing import Any

from hmi_cli.render.tables import format_table

Answer = dict[str, Any]

_HEADERS = {"tenantId": "TENANT ID"}


def usage_table(lines: Sequence[Answer]) -> str:
    """Return one line a sum; columns that the report is not split by are left out."""
    split = [name for name in ("start", "tenant", "adapter") if any(line.get(name) for line in lines)]
    if len({line.get("tenantId") for line in lines}) > len({line.get("tenant") for line in lines}):
        split.insert(split.index("tenant") + 1, "tenantId")  # a name that several tenants had in turn
    headers = [*(_HEADERS.get(name, name.upper()) for name in split), "METER", "QUANTITY"]
    rows = [
        [*(str(line.get(name) or "-") for name in split), line["meter"], f"{line['quantity']:,}"]
        for line in lines
    ]
    return format_table(headers, rows)


def bill_table(bill: Answer) -> str:
    """Return a bill: its period, a line each for meter and price, its parts by adapter, and the total."""
    start, end = _day_or_moment(bill["from"]), _day_or_moment(bill["to"])
    head = f"{bill['tenant']}: {start} to {end}, in {bill['currency']}"
    rows = []
    for line in bill["lines"]:
        rows.append(
            [
                line["meter"],
                "",
                f"{line['quantity']:,}",
                line["unitPrice"],
                "",
                line["amount"],
                line["note"],
            ]
        )
        rows += [
            ["", part["adapter"] or "-", f"{part['quantity']:,}", "", part["amount"], "", part["note"]]
            for part in line["parts"]
        ]
    headers = ["METER", "ADAPTER", "QUANTITY", "UNIT PRICE", "EXACT", "AMOUNT", "NOTE"]
    table = format_table(headers, rows)
    return f"{head}\n{table}\ntotal {bill['total']} {bill['currency']}"


def _day_or_moment(moment: str) -> str:
    """Return a moment as the server wrote it; a midnight in UTC as its day alone."""
    return moment.removesuffix("T00:00:00Z")
