"""The volume on which a run keeps its checkpoints, so that a rescheduled pod goes on from there."""

from typing import Any

from hmi_api.internal.runs import RunView
from hmi_operator.kubernetes.jobs.naming import job_name, labels_of, owner_of
from hmi_operator.kubernetes.jobs.settings import TrainerSettings


def build_checkpoint_claim(run: RunView, settings: TrainerSettings) -> dict[str, Any] | None:
    """Return the claim of a run's work volume; None when the installation keeps no checkpoints.

    It belongs to the resource and not to the Job: a Job that somebody deletes is made anew and goes on. When
    the run has ended it is made the Job's.
    """
    if not settings.checkpoint_size:
        return None
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": settings.checkpoint_size}},
    }
    if settings.checkpoint_storage_class is not None:
        spec["storageClassName"] = settings.checkpoint_storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": job_name(run),
            "namespace": run.spec.namespace,
            "labels": labels_of(run, settings.instance),
            "ownerReferences": [owner_of(run)],
        },
        "spec": spec,
    }
