"""Types of the internal API for what the catalog stores: Domains, TaskAdapters and their versions.

    PUT    /tenants/{tenant}                         create the tenant                -> 204
    PUT    /domains/{namespace}/{name}               DomainRecord                     -> 204
    PUT    /adapters/{namespace}/{name}              AdapterRecord                    -> 204
    GET    /domains/{namespace}/{name}?lookups=true&tree=true
                                                     -> DomainView, or 404
    GET    /adapters/{namespace}/{name}              -> AdapterView, or 404
    DELETE both, ?uid=                               delete; idempotent               -> 204
    POST   both/publish-again                        PublishAgain; idempotent         -> PublishedAgain
    POST   /adapters/etags                           AdapterKeys                      -> AdapterETags
    PUT    /adapters/{namespace}/{name}/revocation   Revocation; starts the grace     -> 204
    DELETE /adapters/{namespace}/{name}/revocation   the Domain may be used again     -> 204
    PUT    /cluster                                  ClusterRegistration, or 409      -> RegisteredCluster
    GET    /domains?cursor=                          -> RecordPage
    GET    /adapters?domain=namespace/name&cursor=   -> RecordPage

A catalog belongs to one cluster, named by the uid of its namespace ``kube-system``. When objects are deleted
while HMI does not run, their rows stay behind: the operator finds these orphans by listing and deletes them,
unless a new object of the same name has taken them over.

A revoked TaskAdapter is served for a grace time. Then its versions are deleted, and requests get the reason.
"""

from datetime import timedelta

from pydantic import AwareDatetime, Field, StrictBool

from hmi_api.artifacts import ArtifactRef
from hmi_api.internal.storable import (
    Count,
    DigestText,
    Label,
    LargeCount,
    Message,
    ResourceKey,
    Text,
    Uid,
    WireModel,
    Word,
)
from hmi_api.internal.window_counts import DomainLookups
from hmi_api.resources.common import DataRead
from hmi_api.resources.domain import BaseModelRef, OnMiss
from hmi_api.resources.task_adapter import TaskType

MAX_ETAGS = 500
"""The largest number of TaskAdapters in one request for ETags."""


class DomainRecord(WireModel):
    """A Domain as the operator declares it to the catalog."""

    uid: Uid
    tenant: Label
    generation: LargeCount
    spec_digest: DigestText
    base_uri: Text
    parent: ResourceKey | None = Field(default=None, description="namespace/name of the parent.")


class AdapterRecord(WireModel):
    """A TaskAdapter as the operator declares it to the catalog."""

    uid: Uid
    tenant: Label
    generation: LargeCount
    spec_digest: DigestText
    domain: ResourceKey = Field(description="namespace/name of its Domain.")
    task_type: TaskType
    replicas: Count = 1
    pinned: StrictBool = False


class DomainVersionView(WireModel):
    """A published version of a Domain."""

    version: int
    spec_digest: str
    base: BaseModelRef
    base_digest: str
    split: int
    layers: ArtifactRef
    tables: list[ArtifactRef] = Field(description="Its own table first, then its ancestors', nearest first.")
    on_miss: OnMiss
    entries: int
    coverage: float
    metrics: dict[str, float] = Field(default_factory=dict)
    data: list[DataRead] = Field(default_factory=list)


class TableLevel(WireModel):
    """A table in which the windows of a Domain are looked up."""

    domain: str = Field(default="", description="namespace/name of its Domain; empty if it was deleted.")
    entries: LargeCount | None = Field(default=None, description="None if its version was deleted.")
    bytes: LargeCount


class DomainTree(WireModel):
    """What the current version of a Domain shares with its ancestors and with the Domains below it."""

    levels: list[TableLevel] = Field(description="Its own table first, then its ancestors', nearest first.")
    below: Count = Field(description="Domains below it whose current version has the same layers.")
    lookups: LargeCount = Field(
        description="Windows looked up in the current versions of these Domains below."
    )


class DomainView(WireModel):
    """A Domain in the catalog."""

    record: DomainRecord
    current: DomainVersionView | None = None
    lookups: DomainLookups | None = Field(
        default=None, description="Of the current version; only if the request asks for it."
    )
    tree: DomainTree | None = Field(
        default=None, description="Of the current version; only if the request asks for it."
    )


class AdapterVersionView(WireModel):
    """A published version of a TaskAdapter."""

    version: int
    spec_digest: str
    artifact: ArtifactRef
    layers_digest: str
    labels: list[str]
    metrics: dict[str, float] = Field(default_factory=dict)
    data: list[DataRead] = Field(default_factory=list)
    gate_passed: StrictBool = True


class EarlierVersion(WireModel):
    """A version that a runtime serves until it has loaded the current one."""

    runtime: str = Field(description="Id of the runtime.")
    version: int


class LoadError(WireModel):
    """Why a runtime could not load the current version, or another table of its Domain for it."""

    reason: str
    message: str


class AdapterView(WireModel):
    """A TaskAdapter in the catalog, and the runtimes that have loaded it."""

    record: AdapterRecord
    current: AdapterVersionView | None = None
    scheduled_on: list[str] = Field(default_factory=list, description="Ids of runtimes it is placed on.")
    loaded_on: list[str] = Field(
        default_factory=list, description="Ids of runtimes that say they can serve the current version."
    )
    earlier: list[EarlierVersion] = Field(
        default_factory=list, description="What runtimes without the current version serve in its place."
    )
    load_error: LoadError | None = Field(default=None, description="Why the last load failed, if one did.")
    runtimes: int | None = Field(
        default=None, description="Runtimes that are running, where it is placed on none; else not counted."
    )
    revoked_at: AwareDatetime | None = Field(
        default=None, description="When its use of its Domain was revoked."
    )
    withdrawn: StrictBool = Field(default=False, description="Whether its versions were deleted for that.")
    etag: str = Field(default="", description="Changes with anything below ``record`` except ``runtimes``.")


class PublishAgain(WireModel):
    """Publish an earlier version again, because the declared spec is its spec again."""

    uid: str = Field(description="uid of the resource.")
    spec_digest: str


class PublishedAgain(WireModel):
    """The new version number; None if no such version is left."""

    version: int | None = None


class AdapterKeys(WireModel):
    """The TaskAdapters to return the ETags of."""

    keys: list[ResourceKey] = Field(max_length=MAX_ETAGS, description="namespace/name of each.")


class AdapterETags(WireModel):
    """The ETags of TaskAdapters; those that are not in the catalog are left out."""

    etags: dict[str, str] = Field(description="By namespace/name, as in their views.")


class ClusterRegistration(WireModel):
    """Registers the operator's cluster as the owner of this catalog."""

    uid: Uid = Field(min_length=1, description="uid of the cluster's namespace kube-system.")


class RegisteredCluster(WireModel):
    """The registration was accepted."""

    known_seconds: float = Field(description="Since the first registration of this cluster.")
    inherited: bool = Field(description="Whether there were Domains or TaskAdapters before that.")


class RecordKey(WireModel):
    """A Domain or TaskAdapter in the catalog."""

    key: ResourceKey = Field(description="namespace/name.")
    uid: Uid = Field(description="uid of the object that it was declared for.")


class RecordPage(WireModel):
    """A page of the catalog, in a stable order."""

    items: list[RecordKey]
    next_cursor: str | None = Field(default=None, description="Asks for the next page; None at the end.")


GRACE = timedelta(minutes=10)
"""How long a revoked TaskAdapter is served by default."""


class Revocation(WireModel):
    """A TaskAdapter may no longer use its Domain."""

    reason: Word
    message: Message = Field(description="The message for requests once the versions are withdrawn.")
    withdraw: StrictBool = Field(default=False, description="The grace time is over: delete the versions.")
