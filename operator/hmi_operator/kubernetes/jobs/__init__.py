"""Training runs as Kubernetes Jobs: manifests, status, a watch, and the reconciler's port over them.

Belongs here: pure builders from a run to a Job, its volumes and NetworkPolicy; the status of Jobs and pods;
the watch of Jobs; and ``KubernetesTrainingJobs``, which calls the API server. Forbidden here: rules of
reconciliation, and reading Secrets or ConfigMaps.

How they fit together::

    cache = JobCache()
    jobs = KubernetesTrainingJobs(client, cache, settings)
    ref = cache.on_job(type, job)  # for every event of watch_jobs: the resource to enqueue, or None
"""

from hmi_operator.kubernetes.jobs.job_watch import JobCache, watch_jobs
from hmi_operator.kubernetes.jobs.settings import TrainerSettings
from hmi_operator.kubernetes.jobs.training_jobs import KubernetesTrainingJobs

__all__ = [
    "JobCache",
    "KubernetesTrainingJobs",
    "TrainerSettings",
    "watch_jobs",
]
