"""Training runs as Kubernetes Jobs: their manifests, what is known of them, and the engine's port over both.

Belongs here: pure builders from a run to a Job and its volumes, pure readings of Jobs and pods, and
``KubeJobs``, which calls the API server. Forbidden here: rules of reconciliation (``hmi_operator.planning``),
watching (whoever watches hands events to ``TrainingCache``), and reading Secrets or ConfigMaps.

How they fit together::

    cache = TrainingCache()
    jobs = KubeJobs(api, cache, TrainerSettings(image="hmi/runtime:1", ...))
    ref = cache.on_job(type, body)  # for every event of a Job labelled hmi.dev/run: whom to wake
    ref = cache.on_pod(type, body)  # the same for pods
"""

from hmi_operator.kubernetes.jobs.cache import TrainingCache
from hmi_operator.kubernetes.jobs.claim import build_checkpoint_claim
from hmi_operator.kubernetes.jobs.kube_jobs import KubeJobs
from hmi_operator.kubernetes.jobs.manifest import build_training_job
from hmi_operator.kubernetes.jobs.settings import TrainerSettings

__all__ = ["KubeJobs", "TrainerSettings", "TrainingCache", "build_checkpoint_claim", "build_training_job"]
