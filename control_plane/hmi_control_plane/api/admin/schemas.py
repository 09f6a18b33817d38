"""Bodies of the admin API."""

from collections.abc import Callable
from datetime import date, datetime
from typing import Annotated, Generic, Self, TypeVar

from fastapi import Depends, Query
from pydantic import Field

from hmi_api.artifacts import ArtifactRef
from hmi_api.internal.catalog import AdapterView, DomainView
from hmi_api.internal.precision import EngineReport, PrecisionChoice
from hmi_api.internal.runs import RunView
from hmi_api.internal.runtimes import ResidentBytes
from hmi_api.internal.storable import Text, WireModel
from hmi_api.resources.common import DnsLabel
from hmi_control_plane.catalog.paging import MAX_CURSOR_LENGTH, MAX_PAGE_ITEMS, Page, PageRequest
from hmi_control_plane.catalog.tables import Artifact, TrainingRun

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE_ITEMS, description="Most items a page.")]
Cursor = Annotated[
    str | None, Query(max_length=MAX_CURSOR_LENGTH, description="next_cursor of the previous page.")
]


async def _page_request(limit: Limit = 100, cursor: Cursor = None) -> PageRequest:
    return PageRequest(limit, cursor)


Paging = Annotated[PageRequest, Depends(_page_request)]
"""Query parameters ``limit`` and ``cursor``."""
TenantFilter = Annotated[DnsLabel | None, Query(description="Only this tenant's.")]

R = TypeVar("R")
T = TypeVar("T")


class Listing(WireModel, Generic[T]):
    """A page of a list."""

    items: list[T]
    next_cursor: str | None = Field(
        default=None, description="Requests the next page; absent on the last one."
    )


class TenantCreate(WireModel):
    """Request to create a tenant."""

    name: DnsLabel
    display_name: Text = Field(default="", max_length=200)


class TenantUpdate(WireModel):
    """Request to change a tenant."""

    display_name: Text = Field(max_length=200)


class TenantBody(WireModel):
    """A tenant."""

    id: str = Field(description="Never given to another tenant, as the name may be after a deletion.")
    name: str
    display_name: str
    created_at: datetime


class DeletedTenantBody(TenantBody):
    """A tenant that was deleted."""

    deleted_at: datetime


class KeyCreate(WireModel):
    """Request to create an API key."""

    name: Text = Field(default="", max_length=200, description="What the key is used for.")


class KeyBody(WireModel):
    """An API key without its secret."""

    id: str
    tenant: str
    tenant_id: str
    name: str
    created_at: datetime
    revoked_at: datetime | None = None
    last_used_on: date | None = Field(default=None, description="Day of its last use, UTC.")


class KeyCreated(KeyBody):
    """A new API key."""

    key: str = Field(description="The key itself, shown only now.")


class NamedDomain(WireModel):
    """A Domain in a list."""

    namespace: str
    name: str
    domain: DomainView


class NamedAdapter(WireModel):
    """A TaskAdapter in a list."""

    namespace: str
    name: str
    adapter: AdapterView


class ArtifactBody(WireModel):
    """An artifact, and how many versions use it."""

    artifact: ArtifactRef
    refcount: int
    created_at: datetime

    @classmethod
    def of(cls, row: Artifact) -> Self:
        """Return the body of a stored artifact."""
        ref = ArtifactRef.model_validate(row)
        return cls(artifact=ref, refcount=row.refcount, created_at=row.created_at)


class RunBody(WireModel):
    """A training run in a list."""

    tenant: str
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    run: RunView

    @classmethod
    def of(cls, row: TrainingRun) -> Self:
        """Return the body of a stored run."""
        return cls(
            tenant=row.tenant,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
            run=RunView.model_validate(row),
        )


class RuntimeBody(WireModel):
    """A runtime."""

    id: str
    url: str
    device: str
    capacity_bytes: int
    host_capacity_bytes: int | None = Field(
        default=None, description="Bytes of it for adapters; absent: adapters and tables share it."
    )
    table_capacity_bytes: int | None = Field(
        default=None, description="Bytes of it for tables and layers in memory."
    )
    placed_bytes: int = Field(description="Bytes of all placements; may exceed the capacity.")
    placed_table_bytes: int = Field(default=0, description="Bytes of them for tables and layers.")
    free_bytes: int = Field(description="As last reported.")
    queue_depth: int
    resident: list[ResidentBytes]
    pool: str = Field(description="Empty until it has loaded a base model.")
    processor: str
    engines: list[EngineReport] = Field(description="Precision of each base model's upper layers.")
    draining: bool
    lost: bool
    registered_at: datetime
    heartbeat_at: datetime


class PrecisionChoiceBody(WireModel):
    """A recorded precision choice."""

    id: int
    pool: str
    requested: str = Field(description="HMI_PRECISION of the pool's runtimes.")
    base_digest: str
    split: int
    processor: str
    choice: PrecisionChoice
    runtime_id: str = Field(description="The runtime that measured.")
    chosen_at: datetime


class PlacementBody(WireModel):
    """An adapter that is placed on a runtime."""

    adapter: str = Field(validation_alias="adapter_key", description="tenant/adapter.")
    bytes: int
    revision: int


def listing(page: Page[R], convert: Callable[[R], T]) -> Listing[T]:
    """Return the response body of a page, with each row converted."""
    return Listing(items=[convert(row) for row in page.items], next_cursor=page.next_cursor)
