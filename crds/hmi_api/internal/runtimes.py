"""Types of the internal API for runtimes: registration, heartbeats and the desired state.

PUT    /runtimes/{id}                            RuntimeRegistration              -> 204
POST   /runtimes/{id}/heartbeat                  Heartbeat                        -> HeartbeatReply
GET    /runtimes/{id}/desired?since=N&wait=S     -> DesiredState (long poll)
DELETE /runtimes/{id}                            the runtime has drained          -> 204
"""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, StrictBool, model_serializer

from hmi_api.artifacts import ArtifactRef
from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.storable import (
    Count,
    LargeCount,
    Message,
    ResourceKey,
    Text,
    Uid,
    WireModel,
)
from hmi_api.resources.task_adapter import TaskType


class RuntimeRegistration(WireModel):
    """A runtime that has started."""

    url: Text
    device: Text = Field(max_length=200, description="cpu or cuda, with its name.")
    capacity_bytes: LargeCount = Field(description="What adapters and tables may take.")
    incarnation: Uid = Field(description="New at every start; what was recorded of an older one is void.")
    host_bytes: LargeCount | None = Field(
        default=None,
        description="Bytes of host memory for adapters; absent: adapters and tables share the capacity.",
    )
    table_bytes: LargeCount | None = Field(
        default=None,
        description="Bytes of host memory for tables and layers; tables that need more are partly on "
        "disk. Absent: they must fit, and share the capacity with adapters.",
    )

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, to_fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out absent fields, which a control plane of an older version refuses even as null."""
        return {name: value for name, value in to_fields(self).items() if value is not None}


class AdapterVersionRef(WireModel):
    """One version of an adapter."""

    adapter: ResourceKey = Field(description="tenant/adapter.")
    version: Count


class LoadFailure(AdapterVersionRef):
    """A version that a runtime could not load, and why."""

    reason: Text
    message: Message
    serves: StrictBool = Field(
        default=False,
        exclude_if=lambda value: not value,  # a control plane of an older version refuses the field
        description="Whether this version serves meanwhile, on an earlier table of its Domain.",
    )


PASSING_LOAD_FAILURES = frozenset(
    {
        "AdapterLoadFailed",
        "BaseModelSourceAway",
        "DiskBudgetFull",
        "DomainNotAnnounced",
        "HostBudgetFull",
        "TableBudgetFull",
    }
)
"""Reasons of failed loads that are retried, because memory, a store or a message may become available."""


class ResidentBytes(WireModel):
    """Bytes in the cache, by kind and tier."""

    kind: Literal["adapter", "table"]
    tier: Literal["device", "host", "disk"]
    bytes: LargeCount


class Heartbeat(WireModel):
    """A runtime's report, every few seconds; the lists contain changes since the last acknowledged one."""

    incarnation: Uid
    ready: list[AdapterVersionRef] = Field(default_factory=list, description="Versions that are ready now.")
    gone: list[AdapterVersionRef] = Field(default_factory=list, description="Versions that no longer are.")
    failed: list[LoadFailure] = Field(default_factory=list)
    resident: list[ResidentBytes] = Field(default_factory=list)
    free_bytes: LargeCount = 0
    queue_depth: Count = 0
    draining: StrictBool = False


class HeartbeatReply(WireModel):
    """Answer to a heartbeat. If not ``known``, the runtime must register and report everything again."""

    known: StrictBool
    desired_revision: int
    only_here: int = Field(
        default=0,
        description="Adapters that this draining runtime serves and another is to serve, but does not yet.",
    )


class DomainServing(WireModel):
    """What a runtime needs to load adapters on one version of a Domain."""

    key: str = Field(description="namespace/name.")
    version: DomainVersionView


class AdapterServing(WireModel):
    """What a runtime needs to load one version of an adapter."""

    key: str = Field(description="tenant/adapter.")
    tenant_id: str = Field(
        default="", description="Id of its tenant; another tenant may have had the name before."
    )
    version: int
    task_type: TaskType
    labels: list[str]
    artifact: ArtifactRef
    domain: str = Field(description="namespace/name of its Domain.")
    domain_version: int = Field(description="Version whose layers it was trained on.")
    pinned: StrictBool = False


class DesiredState(WireModel):
    """What a runtime should have loaded: everything if ``full``, else the changes since ``since``."""

    revision: int
    full: StrictBool
    domains: list[DomainServing] = Field(default_factory=list)
    adapters: list[AdapterServing] = Field(default_factory=list)
    removed_adapters: list[str] = Field(default_factory=list, description='"tenant/adapter".')
