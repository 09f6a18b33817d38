"""Types of the internal API for training runs and the artifacts that they publish.

    POST   /runs                                     RunCreate; idempotent            -> RunView
    GET    /runs/{id}                                -> RunView, or 404
    POST   /runs/{id}/progress                       RunProgress                      -> RunView
    POST   /runs/{id}/complete                       RunResult                        -> RunView
    POST   /runs/{id}/fail                           RunFailure                       -> RunView
    PUT    /runs/{id}/pods                           RunPods                          -> 204
    PUT    /artifacts/{run}/files/{sha256}           a file's bytes, not visible yet  -> 204
    POST   /artifacts/{run}                          ArtifactCommit; idempotent       -> ArtifactCommitted
    GET    /artifacts/{run}/{sha256}/{path}          a file of an artifact that the run names; Range

The operator reports the pods of each run's Job. A trainer's token names its pod
(``authentication.kubernetes.io/pod-uid``), and the control plane accepts reports only from pods of that Job.
A run is billed by the kubelet's times of its pods, not by what the trainer reports.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, StrictBool, model_validator
from pydantic_core import PydanticCustomError

from hmi_api.artifacts import ArtifactRef
from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.refreshes import RefreshResult, RefreshSpec
from hmi_api.internal.storable import (
    Count,
    DigestText,
    Finite,
    Label,
    LargeCount,
    Message,
    Metrics,
    Text,
    Uid,
    WireModel,
    Word,
    json_problem,
)
from hmi_api.resources.common import DataRead
from hmi_api.resources.domain import DomainSpec
from hmi_api.resources.task_adapter import TaskAdapterSpec

RUN_ID = r"[0-9a-f]{1,32}"
"""The pattern of a run's id."""
TRAINING_ATTEMPTS = 4
"""Attempts for one spec digest before a retryable failure becomes final."""
RETRIED_WITHOUT_LIMIT = frozenset({"BaseModelSourceAway", "SourceAway"})
"""Failures of an outside server: retried without a limit on attempts, with the longest backoff in the end."""


class RunState(StrEnum):
    """State of a training run; the last two are final."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class DomainRunSpec(WireModel):
    """Input of ``python -m hmi_runtime.training domain``."""

    kind: Literal["domain"] = "domain"
    namespace: str
    name: str
    spec: DomainSpec
    parent: DomainVersionView | None = Field(default=None, description="Layers and tables to start from.")
    refresh: RefreshSpec | None = Field(
        default=None,
        exclude_if=lambda value: value is None,  # parts of an earlier version do not know the field
        description="Build the next table of this version from traffic, and train nothing.",
    )


class AdapterRunSpec(WireModel):
    """Input of ``python -m hmi_runtime.training adapter``."""

    kind: Literal["adapter"] = "adapter"
    namespace: str
    name: str
    spec: TaskAdapterSpec
    domain: DomainVersionView


RunSpec = DomainRunSpec | AdapterRunSpec


class RunCreate(WireModel):
    """Create a run; the same uid, spec digest and attempt give the same run."""

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
    """Progress of a run."""

    stage: Word = Field(
        description="corpus, traffic, teaching, training, settling, table, evaluation or publishing."
    )
    step: LargeCount
    total: LargeCount
    metrics: Metrics = Field(default_factory=dict)
    data: list[DataRead] = Field(default_factory=list, description="What was read so far, source by source.")


class RunResult(WireModel):
    """What a run published. The control plane creates the version in the same transaction."""

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
    refresh: RefreshResult | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Refresh runs: what changed."
    )
    training_seconds: Annotated[Finite, Field(ge=0, le=1e9)] = 0.0


class ArtifactCommit(WireModel):
    """Make an artifact of uploaded files."""

    manifest: Text = Field(description="manifest.json, to the byte: its SHA-256 names the artifact.")


class ArtifactCommitted(WireModel):
    """The artifact, now visible to all; or the files to upload before the next attempt."""

    artifact: ArtifactRef | None = None
    missing: list[str] = Field(default_factory=list, description="sha256: digests of files.")


class RunFailure(WireModel):
    """Why a run ended without a result."""

    data: list[DataRead] = Field(default_factory=list, description="What was read, source by source.")
    reason: Word
    message: Message
    retryable: StrictBool = False


class RunView(WireModel):
    """A run in the catalog."""

    id: str
    uid: str
    spec_digest: str
    attempt: int
    state: RunState
    spec: DomainRunSpec | AdapterRunSpec = Field(discriminator="kind")
    progress: RunProgress | None = None
    result: RunResult | None = None
    failure: RunFailure | None = None


class RunPod(WireModel):
    """A pod of a run's Job."""

    uid: Uid = Field(min_length=1)
    started_at: AwareDatetime | None = Field(default=None, description="When its program began to run.")
    finished_at: AwareDatetime | None = Field(default=None, description="When that ended.")


class RunPods(WireModel):
    """The pods of a run's present Job; those of earlier Jobs are remembered."""

    pods: list[RunPod] = Field(max_length=100)


def seconds_of(started_at: datetime | None, finished_at: datetime | None, until: datetime) -> float:
    """Return how long a pod's program ran; up to ``until`` if it still runs."""
    if started_at is None:
        return 0.0
    return max(((finished_at or until) - started_at).total_seconds(), 0.0)
