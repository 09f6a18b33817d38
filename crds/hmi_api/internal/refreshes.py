"""Types of the internal API for refreshed tables: what a refresh run gets, and the tables of a Domain.

    GET    /domains/{namespace}/{name}/refreshes       -> Refreshes, or 404
    POST   /domains/{namespace}/{name}/restore-table   RestoreTable; idempotent         -> RestoredTable

A refresh publishes a version with the layers of the current one and another table. Earlier versions are kept,
so that a rollback can publish their tables again, as the next version.
"""

from enum import StrEnum

from pydantic import AwareDatetime, Field

from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.storable import Count, Finite, LargeCount, Uid, WireModel, Word


class RefreshCause(StrEnum):
    """Why a refresh was started."""

    SCHEDULE = "Schedule"
    MISS_RATE = "MissRate"
    REQUEST = "Request"


class RefreshSpec(WireModel):
    """What a refresh run starts from."""

    current: DomainVersionView = Field(description="The version whose table is refreshed.")
    cause: RefreshCause
    request: Word = Field(default="", description="Value of the annotation hmi.dev/refresh at the start.")
    hit_rate: Finite | None = Field(
        default=None, description="Hit rate of the current version when the run was created."
    )


class RefreshResult(WireModel):
    """What a refresh run changed; without changes it publishes nothing."""

    windows_in: LargeCount
    windows_out: LargeCount


class TableChange(WireModel):
    """How a version came from the one before it: by a refresh or a rollback."""

    cause: RefreshCause | None = None
    windows_in: LargeCount = 0
    windows_out: LargeCount = 0
    hit_rate_before: Finite | None = None
    restored: Count | None = Field(default=None, description="Version that a rollback went back to.")


class TableVersion(WireModel):
    """A kept version of a Domain that has the layers and the spec of the current one."""

    version: Count
    table: str = Field(description="Digest of its own table; empty if it has none.")
    entries: LargeCount
    created_at: AwareDatetime
    change: TableChange | None = Field(default=None, description="None for a version that was trained.")


class RefreshRun(WireModel):
    """The refresh run of a Domain that was created last."""

    run_id: str
    version: Count = Field(description="The version whose table it refreshes.")
    attempt: Count
    state: Word = Field(description="Its ``RunState``.")
    request: str = ""
    created_at: AwareDatetime


class Refreshes(WireModel):
    """The tables of a Domain's current layers, and its last refresh run."""

    tables: list[TableVersion] = Field(default_factory=list, description="The current version first.")
    last_run: RefreshRun | None = None


class RestoreTable(WireModel):
    """Roll back to the table of a kept version."""

    uid: Uid
    version: Count


class RestoredTable(WireModel):
    """The version that has the table now; None if the named version is not kept."""

    version: int | None = None
