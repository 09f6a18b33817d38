"""Names and labels of the objects of a training run."""

import hashlib

from hmi_api.internal.runs import RunView
from hmi_api.names import API_VERSION, GROUP
from hmi_operator.planning.observed import is_refresh
from hmi_operator.ports import ResourceRef

MANAGED_BY = "app.kubernetes.io/managed-by"
COMPONENT = "app.kubernetes.io/component"
TRAINER = "trainer"
KIND_LABEL = f"{GROUP}/kind"
NAME_LABEL = f"{GROUP}/name"
RUN_LABEL = f"{GROUP}/run"
UID_LABEL = f"{GROUP}/uid"
DIGEST_ANNOTATION = f"{GROUP}/spec-digest"
CRASHES_ANNOTATION = f"{GROUP}/crashes"
"""Crashes of this run's earlier Jobs, so that a new Job of the run counts on from them."""

_LONGEST_NAME = 63
_HASH_DIGITS = 10


def job_name(run: RunView) -> str:
    """Return the name of a run's Job and work volume: the same for every replica.

    It is made from the resource's uid, the spec's digest and the attempt: a resource that was deleted and
    applied again does not get the earlier object's Job.
    """
    identity = f"{run.uid}/{run.spec_digest}/{run.attempt}/{run.id}"
    tail = hashlib.sha256(identity.encode()).hexdigest()[:_HASH_DIGITS]
    work = "refresh" if is_refresh(run) else run.spec.kind
    head = f"{work}-{run.spec.name}"[: _LONGEST_NAME - _HASH_DIGITS - 1].rstrip("-.")
    return f"{head}-{tail}"


def labels_of(run: RunView, instance: str) -> dict[str, str]:
    """Return the labels of a run's Job, pods and work volume."""
    ref = ResourceRef.of_run(run)
    return {
        "app.kubernetes.io/name": "hmi",
        "app.kubernetes.io/instance": instance,
        COMPONENT: TRAINER,
        "app.kubernetes.io/part-of": "hmi",
        MANAGED_BY: "hmi-operator",
        KIND_LABEL: ref.kind,
        NAME_LABEL: ref.name,
        RUN_LABEL: run.id,
        UID_LABEL: run.uid,
    }


def owner_of(run: RunView) -> dict[str, object]:
    """Return the owner reference to the run's resource: its objects are deleted with it."""
    ref = ResourceRef.of_run(run)
    return {
        "apiVersion": API_VERSION,
        "kind": ref.kind,
        "name": ref.name,
        "uid": run.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
