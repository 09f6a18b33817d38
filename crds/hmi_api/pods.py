"""Which pods work on a training run: the operator reports them, and the control plane believes no others.

    PUT  /runs/{id}/pods                           RunPods          -> 204

A trainer's token names the pod that it was made for (``authentication.kubernetes.io/pod-uid``). The uid is
held against the pods of the run's own Job, so that no other pod and no other token of the namespace's account
speaks for a run. Times are the kubelet's: what a run is billed for is not the trainer's word.
"""

from datetime import datetime

from pydantic import AwareDatetime, Field

from hmi_api.artifacts import WireModel
from hmi_api.storable import Uid


class RunPod(WireModel):
    """A pod of a run's Job."""

    uid: Uid = Field(min_length=1)
    started_at: AwareDatetime | None = Field(default=None, description="When its program began to run.")
    finished_at: AwareDatetime | None = Field(default=None, description="When that ended.")


class RunPods(WireModel):
    """The pods of a run's present Job; those of earlier Jobs are remembered."""

    pods: list[RunPod] = Field(max_length=100)


def seconds_of(started_at: datetime | None, finished_at: datetime | None, until: datetime) -> float:
    """Return how long a pod's program ran, until the moment given where it runs still."""
    if started_at is None:
        return 0.0
    return max(((finished_at or until) - started_at).total_seconds(), 0.0)
