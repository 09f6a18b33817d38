"""``hmi refresh`` and ``hmi rollback``, and how ``hmi`` shows a Domain's tables."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from served_command import Run, Served

from hmi_api.resources.domain import RefreshStatus, TableStatus
from hmi_cli.demo.report import print_refresh
from hmi_operator.ports import ResourceRef

REF = ResourceRef("Domain", "default", "hotel")
MADE = "2026-11-29T03:00:00Z"
TABLES = [
    TableStatus(version=4, entries=20, created=MADE, restored=2),
    TableStatus(
        version=3,
        entries=1200,
        created=MADE,
        cause="Schedule",
        windows_in=1000,
        windows_out=7,
        hit_rate_before=0.712,
    ),
    TableStatus(version=2, entries=20, created=MADE, cause="MissRate", windows_in=3, windows_out=2),
]


@pytest.fixture
def apply(hmi: Run, served: Served, tmp_path: Path) -> Any:
    """Apply a Domain; give it a status."""

    def make(plot: str, tables: list[TableStatus]) -> None:
        manifest = f"""
apiVersion: hmi.dev/v1alpha1
kind: Domain
metadata: {{name: hotel}}
spec: {{baseModel: {{uri: "wheel://m"}}, corpus: [{{uri: /c}}], plot: {plot}}}
"""
        file = tmp_path / "hotel.yaml"
        file.write_text(manifest)
        assert hmi("apply", "-f", str(file))[0] == 0
        domain = served.store.get(REF)
        assert domain is not None
        refresh = RefreshStatus(last_refresh=MADE, next_time="2026-11-30T03:00:00Z", tables=tables)
        status = domain.status.model_copy(update={"refresh": refresh, "hit_rate": 0.934})
        served.do(served.store.write_status(REF, domain.metadata.uid, status))

    return make


def annotations(served: Served) -> dict[str, str]:
    found = served.store.get(REF)
    assert found is not None
    return found.metadata.annotations


def test_a_refresh_is_requested_with_a_new_value_each_time(hmi: Run, served: Served, apply: Any) -> None:
    apply("{refresh: {}}", TABLES)
    assert hmi("refresh", "hotel")[:2] == (0, "domain.hmi.dev/hotel refresh requested\n")
    assert annotations(served)["hmi.dev/refresh"].startswith("20")


def test_a_domain_without_refresh_or_with_a_kept_table_is_not_refreshed(hmi: Run, apply: Any) -> None:
    apply("{}", [])
    code, _, errors = hmi("refresh", "hotel")
    assert code == 1
    assert "no plot.refresh" in errors
    apply("{refresh: {}}", TABLES)
    assert hmi("rollback", "hotel", "--to-version", "2")[0] == 0
    code, _, errors = hmi("refresh", "hotel")
    assert code == 1
    assert "--resume" in errors


def test_a_rollback_takes_the_table_before_the_last_refresh(hmi: Run, served: Served, apply: Any) -> None:
    apply("{refresh: {}}", TABLES[1:])
    code, out, _ = hmi("rollback", "hotel")
    assert (code, out) == (0, "domain.hmi.dev/hotel is rolled back to the table of version 2\n")
    assert annotations(served)["hmi.dev/table-version"] == "2"
    assert hmi("rollback", "hotel", "--resume")[0] == 0
    assert "hmi.dev/table-version" not in annotations(served)


@pytest.mark.parametrize(
    ("arguments", "tables", "code", "message"),
    [
        (["--to-version", "9"], TABLES, 1, "kept are 4, 3, 2"),
        ([], TABLES[2:], 1, "no earlier table is kept"),
        ([], [], 1, "no earlier table is kept"),
        (["--to-version", "2", "--resume"], TABLES, 2, "exclude each other"),
        (["--to-version", "0"], TABLES, 2, ""),
    ],
)
def test_a_rollback_that_cannot_be(
    arguments: list[str], tables: list[TableStatus], code: int, message: str, hmi: Run, apply: Any
) -> None:
    apply("{refresh: {}}", tables)
    found, _, errors = hmi("rollback", "hotel", *arguments)
    assert found == code
    assert message in errors


def test_tables_and_hit_rate_are_shown(hmi: Run, apply: Any) -> None:
    apply("{refresh: {}}", TABLES)
    header, row = hmi("get", "dom", "hotel")[1].splitlines()
    assert header.split()[5] == "HIT-RATE"
    assert "93%" in row
    text = hmi("describe", "dom", "hotel")[1]
    assert "next refresh:       2026-11-30T03:00:00Z" in text
    assert "tables:             Version 4 has the table of version 2 again." in text
    assert (
        "Version 3 has a refreshed table (Schedule): 1,000 windows came in, 7 left, 1,200 in all; "
        "71.2% of lookups hit the table before." in text
    )


def test_the_demonstration_shows_what_a_refresh_changed() -> None:
    shown = io.StringIO()
    tables = [table.model_dump(by_alias=True) for table in TABLES[1:]]
    item = {"status": {"refresh": {"tables": tables}}}
    print_refresh(Console(file=shown, width=200), item, 0.712, None)
    assert "1,000 windows came in, 7 left" in shown.getvalue()
    assert "71.2% before, - after" in shown.getvalue()
