"""The Job and the work volume of a training run."""

from collections.abc import Iterable
from typing import Any

from kubernetes.aio.client import V1Job, V1PersistentVolumeClaim
from pydantic import ValidationError

from hmi_api.errors import InvalidInput
from hmi_api.internal.runs import DomainRunSpec, RunView
from hmi_api.internal.trainer import EXIT_FAILED, EXIT_TRY_AGAIN, EXIT_USAGE, TrainingSettings
from hmi_api.resources.common import DataSource, Resources
from hmi_api.resources.data_addresses import Mounted, MountKind, mounted
from hmi_api.resources.reasons import Reason
from hmi_api.resources.task_adapter import ImportSource
from hmi_api.security.ca_certificates import VARIABLE as CA_VARIABLE
from hmi_operator.kubernetes.jobs.naming import (
    CRASHES_ANNOTATION,
    DIGEST_ANNOTATION,
    job_name,
    labels_of,
    owner_of,
)
from hmi_operator.kubernetes.jobs.settings import TrainerSettings
from hmi_operator.planning.training import MAX_CRASHES

CONTAINER = "training"
WORK_DIR = "/var/lib/hmi"
MOUNTS_DIR = "/mnt/hmi"
TOKEN_DIR = "/var/run/secrets/hmi"
TOKEN_FILE = "token"

_AUDIENCE = "hmi-control-plane"
_TOKEN_SECONDS = 3600
_SCRATCH_SIZE = "1Gi"

_USER = 65532


def build_training_job(run: RunView, settings: TrainerSettings, *, crashes: int = 0) -> V1Job:
    """Return the Job of a run. Pure: the same run and settings, the same Job.

    ``crashes`` are those of the run's earlier Jobs. The Job's own controller starts a pod again that died,
    ever more slowly, until the run has died as often as the planner allows; evicted or preempted pods do
    not count. Raises ``InvalidInput`` AddressMalformed, or JobRefused if the installation's own parts of
    a pod are not as Kubernetes defines them.
    """
    labels = labels_of(run, settings.trainer_instance)
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(run),
            "namespace": run.spec.namespace,
            "labels": labels,
            "annotations": {DIGEST_ANNOTATION: run.spec_digest, CRASHES_ANNOTATION: str(crashes)},
            "ownerReferences": [owner_of(run)],
        },
        "spec": {
            "backoffLimit": max(MAX_CRASHES - 1 - crashes, 0),
            "activeDeadlineSeconds": settings.trainer_deadline_seconds,
            "ttlSecondsAfterFinished": settings.trainer_succeeded_ttl_seconds,
            "podReplacementPolicy": "Failed",  # two pods never write one work volume
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": {
                "metadata": {
                    "labels": settings.trainer_pod_labels | labels,
                    "annotations": settings.trainer_pod_annotations,
                },
                "spec": _pod(run, settings),
            },
        },
    }
    try:
        return V1Job.model_validate(manifest)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise InvalidInput(
            Reason.JOB_REFUSED, f"The settings of training Jobs are wrong: {problems}."
        ) from error


def build_checkpoint_claim(run: RunView, settings: TrainerSettings) -> V1PersistentVolumeClaim | None:
    """Return the claim of a run's work volume; None if the installation keeps no checkpoints.

    The resource owns it, not the Job: if somebody deletes the Job, a new one continues. After the end of the
    run, the Job owns it.
    """
    if not settings.trainer_checkpoint_size:
        return None
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": settings.trainer_checkpoint_size}},
    }
    if settings.trainer_checkpoint_storage_class is not None:
        spec["storageClassName"] = settings.trainer_checkpoint_storage_class
    manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": job_name(run),
            "namespace": run.spec.namespace,
            "labels": labels_of(run, settings.trainer_instance),
            "ownerReferences": [owner_of(run)],
        },
        "spec": spec,
    }
    return V1PersistentVolumeClaim.model_validate(manifest)


def merged_resources(own: Resources, defaults: Resources) -> dict[str, dict[str, str]]:
    """Return a container's resources: the resource's own, and defaults for what it does not name.

    A default never mixes with the resource's own number for the same thing (its request could be above the
    default limit). What is not CPU, memory or disk, such as GPUs, is requested and limited alike.
    """
    named = {*own.requests, *own.limits}
    requests = {name: value for name, value in defaults.requests.items() if name not in named}
    limits = {name: value for name, value in defaults.limits.items() if name not in named}
    requests |= own.requests
    limits |= own.limits
    for name in {*requests, *limits}:
        if "/" in name:
            limits.setdefault(name, requests.get(name, ""))
            requests[name] = limits[name]
    return {
        "requests": {name: str(value) for name, value in sorted(requests.items())},
        "limits": {name: str(value) for name, value in sorted(limits.items())},
    }


def sources_of(run: RunView) -> list[DataSource | ImportSource]:
    """Return the tenant's data that a run reads: none for a refresh."""
    if isinstance(run.spec, DomainRunSpec):
        return list(run.spec.spec.corpus) if run.spec.refresh is None else []
    spec = run.spec.spec
    data = spec.data
    named = [data.train, data.evaluation, data.unlabelled] if data else []
    return [source for source in (*named, spec.source) if source is not None]


def _failure_rules() -> list[dict[str, Any]]:
    def on_exit(action: str, *codes: int) -> dict[str, Any]:
        values = {"containerName": CONTAINER, "operator": "In", "values": list(codes)}
        return {"action": action, "onExitCodes": values}

    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        on_exit("Ignore", EXIT_TRY_AGAIN),
        on_exit("FailJob", EXIT_FAILED, EXIT_USAGE),  # the trainer has reported why
    ]


def _pod(run: RunView, settings: TrainerSettings) -> dict[str, Any]:
    sources = sources_of(run)
    volumes, mounts = _own_volumes(job_name(run), settings)
    data, data_mounts = _data_volumes(source.uri for source in sources)
    secrets = dict.fromkeys(source.secret_ref.name for source in sources if source.secret_ref is not None)
    container = {
        "name": CONTAINER,
        "image": settings.trainer_image,
        "imagePullPolicy": settings.trainer_image_pull_policy,
        "command": ["python", "-m", "hmi_runtime.training", run.spec.kind],
        "env": _environment(run, settings),
        "envFrom": [{"secretRef": {"name": name}} for name in secrets],
        "resources": merged_resources(run.spec.spec.resources, settings.trainer_default_resources),
        "volumeMounts": mounts + data_mounts + list(settings.trainer_extra_volume_mounts),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": "default",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": settings.trainer_termination_grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes + data + list(settings.trainer_extra_volumes),
    }
    optional = {
        "imagePullSecrets": [{"name": name} for name in settings.trainer_image_pull_secrets],
        "nodeSelector": settings.trainer_node_selector,
        "tolerations": list(settings.trainer_tolerations),
        "affinity": settings.trainer_affinity,
        "priorityClassName": settings.trainer_priority_class_name,
        "runtimeClassName": settings.trainer_runtime_class_name,
    }
    return pod | {field: value for field, value in optional.items() if value}


def _environment(run: RunView, settings: TrainerSettings) -> list[dict[str, Any]]:
    fixed = {
        # Address settings are given even if empty: a tenant's Secret, which is read too, must not set them.
        **TrainingSettings.variables(
            control_plane_url=settings.trainer_control_plane_url or settings.control_plane_url,
            internal_token_file=f"{TOKEN_DIR}/{TOKEN_FILE}",
            run_id=run.id,
            work_dir=WORK_DIR,
            mounts=MOUNTS_DIR,
            data_addresses="cluster",
            data_allowed_hosts=settings.data_allowed_hosts,
            data_allowed_networks=settings.data_allowed_networks,
            data_cluster_networks=settings.data_cluster_networks,
        ),
        **settings.as_environment(),
        "HOME": "/tmp",  # noqa: S108 -- a volume of the pod's own
    }
    chosen = {entry.get("name") for entry in settings.trainer_extra_env}
    fixed |= {name: value for name, value in _outbound(settings).items() if name not in chosen}
    if settings.ca_certificates:
        fixed[CA_VARIABLE] = settings.ca_certificates
    # Libraries count the node's cores, not the container's share of them.
    share = {"resourceFieldRef": {"containerName": CONTAINER, "resource": "limits.cpu"}}
    own = [{"name": name, "value": value} for name, value in fixed.items()] + [
        {"name": name, "valueFrom": share} for name in ("HMI_TRAINING_THREADS", "OMP_NUM_THREADS")
    ]
    names = {entry["name"] for entry in own}
    return own + [entry for entry in settings.trainer_extra_env if entry.get("name") not in names]


def _outbound(settings: TrainerSettings) -> dict[str, str]:
    """Return the variables for a Job's connections to the outside; ``extra_env`` overrides them."""
    proxies = {
        "http_proxy": settings.trainer_http_proxy,
        "https_proxy": settings.trainer_https_proxy,
        "no_proxy": settings.trainer_no_proxy,
        "all_proxy": "",
    }
    both = proxies | {name.upper(): value for name, value in proxies.items()}
    return both | {"AWS_EC2_METADATA_DISABLED": "true"}  # the node's credentials are not the tenant's to use


def _own_volumes(claim: str, settings: TrainerSettings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the volumes that every training pod has, and their mounts; ``claim`` names the work volume."""
    work: dict[str, Any] = {"name": "work"}
    if settings.trainer_checkpoint_size:
        work["persistentVolumeClaim"] = {"claimName": claim}
    else:
        work["emptyDir"] = {}
    token = {
        "serviceAccountToken": {
            "audience": _AUDIENCE,
            "expirationSeconds": _TOKEN_SECONDS,
            "path": TOKEN_FILE,
        }
    }
    volumes = [
        work,
        {"name": "scratch", "emptyDir": {"sizeLimit": _SCRATCH_SIZE}},
        {"name": "token", "projected": {"sources": [token]}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "work", "mountPath": WORK_DIR},
        {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108 -- a volume of the pod's own
        {"name": "token", "mountPath": TOKEN_DIR, "readOnly": True},
    ]
    return volumes, mounts


def _data_volumes(uris: Iterable[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return volumes and read-only mounts of the ConfigMaps and claims that addresses name, each once.

    Raises ``InvalidInput`` AddressMalformed.
    """
    named: dict[tuple[MountKind, str], Mounted] = {}
    for uri in uris:
        found = mounted(uri)
        if found is not None:
            named.setdefault((found.kind, found.name), found)
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    for number, (kind, name) in enumerate(sorted(named)):
        source = (
            {"configMap": {"name": name}}
            if kind is MountKind.CONFIG_MAP
            else {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}
        )
        volumes.append({"name": f"data-{number}", **source})
        path = f"{MOUNTS_DIR}/{kind.value}/{name}"
        mounts.append({"name": f"data-{number}", "mountPath": path, "readOnly": True})
    return volumes, mounts
