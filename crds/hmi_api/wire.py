"""What HMI's own parts say to one another over the control plane's internal HTTP API.

Paths are under ``/internal/v1`` and need the internal token. These types are the contract: the control
plane serves them, and the reconciler, training programs and runtimes are its clients.

    PUT  /tenants/{tenant}                         ensure a tenant                         -> 204
    PUT  /domains/{namespace}/{name}               DomainRecord     declare                -> 204
    PUT  /adapters/{namespace}/{name}              AdapterRecord    declare                -> 204
    GET  /domains/{namespace}/{name}               -> DomainView     (404 when absent)
    GET  /adapters/{namespace}/{name}              -> AdapterView
    POST /adapters/stamps                          AdapterKeys      -> AdapterStamps
    POST both/publish-again                        PublishAgain     idempotent             -> PublishedAgain
    DELETE both                                    erase; idempotent                       -> 204
    POST /runs                                     RunCreate        idempotent             -> RunView
    GET  /runs/{id}                                -> RunView
    POST /runs/{id}/progress | /complete | /fail   RunProgress | RunResult | RunFailure    -> RunView
    PUT  /runtimes/{id}                            RuntimeRegistration                     -> 204
    POST /runtimes/{id}/heartbeat                  Heartbeat                               -> HeartbeatReply
    GET  /runtimes/{id}/desired?since=N&wait=S     -> DesiredState (long poll)
    DELETE /runtimes/{id}                          drained, gone                           -> 204
    PUT  /artifacts/{run}/files/{sha256}           a file's bytes, not visible yet         -> 204
    POST /artifacts/{run}                          ArtifactCommit   -> ArtifactCommitted; idempotent
    GET  /artifacts/{run}/{sha256}/{path}          a file of an artifact that the run names; Range
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, StrictBool, model_validator
from pydantic_core import PydanticCustomError

from hmi_api.artifacts import ArtifactRef, WireModel
from hmi_api.common import DataRead
from hmi_api.domain import BaseModelRef, DomainSpec, OnMiss
from hmi_api.storable import (
    Count,
    DigestText,
    Finite,
    Label,
    LargeCount,
    Message,
    Metrics,
    ResourceKey,
    Text,
    Uid,
    Word,
    json_problem,
)
from hmi_api.tag_schemes import TagScheme
from hmi_api.task_adapter import TaskAdapterSpec, TaskType

STAMPS_AT_ONCE = 500
"""TaskAdapters whose stamps may be asked for with one request."""

# --- declared resources -----------------------------------------------------------------------------


class DomainRecord(WireModel):
    """A Domain as the reconciler declares it to the catalog."""

    uid: Uid
    tenant: Label
    generation: LargeCount
    spec_digest: DigestText
    base_uri: Text
    parent: ResourceKey | None = Field(default=None, description="namespace/name of the parent.")


class AdapterRecord(WireModel):
    """A TaskAdapter as the reconciler declares it to the catalog."""

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


class DomainView(WireModel):
    """A Domain as the catalog knows it."""

    record: DomainRecord
    current: DomainVersionView | None = None


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


class AdapterView(WireModel):
    """A TaskAdapter as the catalog knows it, and where it is served."""

    record: AdapterRecord
    current: AdapterVersionView | None = None
    scheduled_on: list[str] = Field(default_factory=list, description="Ids of runtimes it is placed on.")
    loaded_on: list[str] = Field(
        default_factory=list, description="Ids of runtimes that say they can serve the current version."
    )
    earlier: list[EarlierVersion] = Field(
        default_factory=list, description="What runtimes without the current version serve in its place."
    )
    load_error: str | None = Field(default=None, description="Reason: message of the last failed load.")
    runtimes: int | None = Field(
        default=None, description="Runtimes that are running, where it is placed on none; else not counted."
    )
    revoked_at: AwareDatetime | None = Field(
        default=None, description="Since when it may not stand on its Domain any more."
    )
    withdrawn: StrictBool = Field(default=False, description="Whether its versions were erased for that.")
    stamp: str = Field(
        default="", description="Another one whenever anything below ``record`` is, ``runtimes`` excepted."
    )


class PublishAgain(WireModel):
    """Asks that a version be published again that was made from the spec which is declared (again)."""

    uid: str = Field(description="uid of the resource.")
    spec_digest: str


class PublishedAgain(WireModel):
    """The number under which it is published now; None where no such version is left."""

    version: int | None = None


class AdapterKeys(WireModel):
    """Names TaskAdapters whose stamps are wanted."""

    keys: list[ResourceKey] = Field(max_length=STAMPS_AT_ONCE, description="namespace/name of each.")


class AdapterStamps(WireModel):
    """The stamps of TaskAdapters; those that the catalog does not have are left out."""

    stamps: dict[str, str] = Field(description="By namespace/name, as in their views.")


# --- training runs ----------------------------------------------------------------------------------


TRAINING_ATTEMPTS = 4
"""Runs made for one digest before a failure that could pass is taken for lasting."""

RETRIED_WITHOUT_LIMIT = frozenset({"BaseModelSourceAway", "SourceAway"})
"""Failures that end by themselves once a server outside answers again, however long that takes: they are
tried again without a limit, at the longest backoff at last."""


class RunState(StrEnum):
    """Where a training run stands; the last two are final."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class DomainRunSpec(WireModel):
    """What ``python -m hmi_runtime.training domain`` is told."""

    kind: Literal["domain"] = "domain"
    namespace: str
    name: str
    spec: DomainSpec
    parent: DomainVersionView | None = Field(default=None, description="Layers and tables to start from.")


class AdapterRunSpec(WireModel):
    """What ``python -m hmi_runtime.training adapter`` is told."""

    kind: Literal["adapter"] = "adapter"
    namespace: str
    name: str
    spec: TaskAdapterSpec
    domain: DomainVersionView


RunSpec = DomainRunSpec | AdapterRunSpec


class RunCreate(WireModel):
    """Asks for a run; the same uid and spec digest give the same run."""

    uid: Uid = Field(description="uid of the resource.")
    tenant: Label
    spec_digest: DigestText
    attempt: Count = Field(default=0, description="Raised to try a failed run again.")
    spec: DomainRunSpec | AdapterRunSpec = Field(discriminator="kind")

    @model_validator(mode="after")
    def _storable(self) -> Self:
        problem = json_problem(self.spec.model_dump(mode="json", by_alias=True))
        if problem:
            raise PydanticCustomError("spec_not_storable", "spec: {problem}", {"problem": problem})
        return self


class RunProgress(WireModel):
    """How far a run is."""

    stage: Word = Field(description="corpus, teaching, training, settling, table, evaluation or publishing.")
    step: LargeCount
    total: LargeCount
    metrics: Metrics = Field(default_factory=dict)
    data: list[DataRead] = Field(default_factory=list, description="What was read so far, source by source.")


class RunResult(WireModel):
    """What a run published. The control plane makes a version of it in the same transaction."""

    artifacts: list[ArtifactRef]
    base_digest: DigestText
    layers_digest: DigestText | None = Field(
        default=None, description="Adapter runs: what it was trained on."
    )
    split: Count | None = None
    labels: list[Text] = Field(default_factory=list)
    metrics: Metrics = Field(default_factory=dict)
    gate_passed: StrictBool = True
    gate_message: Message = ""
    data: list[DataRead] = Field(default_factory=list, description="What was read, source by source.")
    entries: LargeCount | None = None
    coverage: Finite | None = None
    training_seconds: Annotated[Finite, Field(ge=0, le=1e9)] = 0.0


class ArtifactCommit(WireModel):
    """Asks that uploaded files become an artifact."""

    manifest: Text = Field(description="manifest.json, to the byte: its SHA-256 names the artifact.")


class ArtifactCommitted(WireModel):
    """The artifact, now visible to all; or none yet, and the files to upload before asking again."""

    artifact: ArtifactRef | None = None
    missing: list[str] = Field(default_factory=list, description="sha256: digests of files.")


class RunFailure(WireModel):
    """Why a run ended without a result."""

    data: list[DataRead] = Field(default_factory=list, description="What was read, source by source.")
    reason: Word
    message: Message
    retryable: StrictBool = False


class RunView(WireModel):
    """A run as the catalog knows it."""

    id: str
    uid: str
    spec_digest: str
    attempt: int
    state: RunState
    spec: DomainRunSpec | AdapterRunSpec = Field(discriminator="kind")
    progress: RunProgress | None = None
    result: RunResult | None = None
    failure: RunFailure | None = None


# --- runtimes ---------------------------------------------------------------------------------------


class RuntimeRegistration(WireModel):
    """A runtime says hello."""

    url: Text
    device: Text = Field(max_length=200, description="cpu or cuda, with its name.")
    capacity_bytes: LargeCount = Field(description="What adapters and tables may take.")
    incarnation: Uid = Field(description="New at every start; older residency is void.")


class LoadFailure(WireModel):
    """An adapter that could not be brought to where it can serve."""

    adapter: ResourceKey
    version: Count
    reason: Text
    message: Message


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
"""Reasons of failed loads that pass by themselves: others use the room, or a store or message is late."""


class ResidentBytes(WireModel):
    """Bytes held, by kind and tier."""

    kind: Literal["adapter", "table"]
    tier: Literal["device", "host", "disk"]
    bytes: LargeCount


class Heartbeat(WireModel):
    """What a runtime reports, every few seconds; lists hold changes since the last answered one."""

    incarnation: Uid
    ready: list[Text] = Field(default_factory=list, description='"tenant/adapter@version" newly servable.')
    gone: list[Text] = Field(default_factory=list, description="No longer servable, same form.")
    failed: list[LoadFailure] = Field(default_factory=list)
    resident: list[ResidentBytes] = Field(default_factory=list)
    free_bytes: LargeCount = 0
    queue_depth: Count = 0
    draining: StrictBool = False


class HeartbeatReply(WireModel):
    """known=False: the control plane does not know this incarnation; register and report all again."""

    known: StrictBool
    desired_revision: int
    only_here: int = Field(
        default=0,
        description="Adapters that this draining runtime serves and another is to serve, but does not yet.",
    )


class DomainServing(WireModel):
    """What a runtime needs to serve adapters on one version of a Domain."""

    key: str = Field(description="namespace/name.")
    version: DomainVersionView


class AdapterServing(WireModel):
    """What a runtime needs to serve one version of an adapter."""

    key: str = Field(description="tenant/adapter.")
    tenant_id: str = Field(default="", description="Whose it is: the name may have been another tenant's.")
    version: int
    task_type: TaskType
    labels: list[str]
    artifact: ArtifactRef
    domain: str = Field(description="namespace/name of its Domain.")
    domain_version: int = Field(description="Version whose layers it was trained on.")
    pinned: StrictBool = False


class DesiredState(WireModel):
    """What a runtime should serve: all of it when ``full``, else what changed since ``since``."""

    revision: int
    full: StrictBool
    domains: list[DomainServing] = Field(default_factory=list)
    adapters: list[AdapterServing] = Field(default_factory=list)
    removed_adapters: list[str] = Field(default_factory=list, description='"tenant/adapter".')


# --- inference: gateway to runtime, POST {runtime}/internal/v1/infer ---------------------------------


class Truncation(WireModel):
    """Cuts a text that has more tokens, special ones included; -1: to the most that the runtime serves."""

    tokens: int = Field(ge=-1)
    side: Literal["left", "right"] = Field(default="right", description="The end at which it is cut.")


class InferRow(WireModel):
    """One text for one adapter."""

    adapter: str = Field(description="tenant/adapter.")
    text: str | None = None
    words: list[str] | None = Field(
        default=None, description="Pre-split text for token tasks, instead of text."
    )
    truncate: Truncation | None = Field(default=None, description="A text too long is refused if absent.")


class InferRequest(WireModel):
    """Rows answered together; each succeeds or fails alone."""

    request_id: str
    rows: list[InferRow]
    tenant_id: str | None = Field(
        default=None, description="Who asks; another tenant's adapters of the same name are as not loaded."
    )


class TokenLabel(WireModel):
    """One labelled stretch of the text."""

    text: str
    start: int = Field(description="First character, from 0.")
    end: int = Field(description="One past the last character.")
    label: str
    score: float


class RowError(WireModel):
    """Why one row has no answer."""

    status: int
    reason: str
    message: str


class RowResult(WireModel):
    """The answer to one row: an error, or scores (sequence) or tokens (token tasks)."""

    error: RowError | None = None
    version: int | None = None
    labels: list[str] = Field(default_factory=list)
    scores: list[float] = Field(default_factory=list, description="Softmax, in the order of labels.")
    tokens: list[TokenLabel] = Field(default_factory=list)
    tag_scheme: TagScheme | None = Field(
        default=None, description="Token tasks: how labels say where entities begin and end."
    )
    prompt_tokens: int = 0
    table_hits: int = 0
    table_lookups: int = 0


class InferReply(WireModel):
    """One result a row, in order."""

    results: list[RowResult]
    timings_ms: dict[str, float] = Field(default_factory=dict)
