"""A watched namespace is deleted and created again, while the operator has only the chart's permissions."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from kube_assets import CHECKOUT
from kube_objects import JOBS
from kube_server import KubeServer
from operator_harness import DOMAINS, PACE, Cluster, cluster, condition, has_phase, until

from hmi_api.internal.client import ControlPlaneClient
from hmi_operator.kubernetes.client import Manifest, connect
from hmi_operator.kubernetes.events import EventRecorder
from hmi_operator.kubernetes.jobs import JobCache, KubernetesTrainingJobs, TrainerSettings
from hmi_operator.kubernetes.lease import Lease
from hmi_operator.kubernetes.operator import Operator

pytestmark = pytest.mark.anyio

SETTINGS = TrainerSettings(
    trainer_image="hmi/runtime:1",
    control_plane_url="http://control-plane",
    trainer_termination_grace_seconds=0,
)
NAME = "operator"
NAMESPACES = {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "list", "watch"]}
LEASES = {
    "apiGroups": ["coordination.k8s.io"],
    "resources": ["leases"],
    "verbs": ["get", "create", "update"],
}


def rules_of(part: str) -> list[dict[str, Any]]:
    """Return the rules that the chart has for a part of the operator's work."""
    text = (CHECKOUT / "helm/hmi/templates/operator/rbac.yaml").read_text()
    found = re.search(rf'define "hmi\.operatorRulesOf{part}" -}}}}\n(.*?){{{{- end', text, re.DOTALL)
    assert found is not None
    return list(yaml.safe_load(found.group(1)))


def role_and_binding(home: str, rules: list[dict[str, Any]], namespace: str | None) -> list[Manifest]:
    """Return a Role of a namespace, or a ClusterRole, and that the operator of ``home`` has it."""
    prefix, metadata = ("", {"namespace": namespace}) if namespace else ("Cluster", {})
    name = NAME if namespace else f"{home}-{NAME}"
    api, group = "rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io"
    role = {"apiVersion": api, "kind": f"{prefix}Role", "metadata": {"name": name} | metadata}
    return [
        role | {"rules": rules},
        role
        | {
            "kind": f"{prefix}RoleBinding",
            "roleRef": {"apiGroup": group, "kind": f"{prefix}Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": home}],
        },
    ]


def give_rights(kube: KubeServer, home: str, namespace: str) -> None:
    """Do what the chart does for a namespace that is watched."""
    rules = rules_of("Training") + ([LEASES] if namespace == home else [])
    kube.apply(*role_and_binding(home, rules, namespace))


def log_in_as_operator(kube: KubeServer, home: str) -> str:
    """Make the operator's service account with its rights on the cluster; return a kubeconfig of its own."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": home}}
    kube.apply(account, *role_and_binding(home, [*rules_of("Types"), NAMESPACES], None))
    config = yaml.safe_load(kube.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": kube.kubectl("-n", home, "create", "token", NAME).strip()}
    file = kube.folder / f"{home}-kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return str(file)


@dataclass
class AtWork:
    """An operator that works."""

    operator: Operator
    training: JobCache
    task: "asyncio.Task[None]"

    @property
    def well(self) -> bool:
        return not self.task.done() and self.operator.problem() is None


@asynccontextmanager
async def at_work(served: Any, home: str, *others: str) -> AsyncIterator[AtWork]:
    async with ControlPlaneClient(served.url, served.token) as control_plane, connect() as client:
        training = JobCache()
        operator = Operator(
            client=client,
            control_plane=control_plane,
            jobs=KubernetesTrainingJobs(client, training, SETTINGS),
            lease=Lease(client, home, "one", seconds=60.0),
            events=EventRecorder(client, "one", namespace=home),
            job_cache=training,
            namespaces=[home, *others],
            pace=PACE,
        )
        stop = asyncio.Event()
        task = asyncio.create_task(operator.run(stop))
        try:
            yield AtWork(operator, training, task)
        finally:
            stop.set()
            await task


async def job_of(there: Cluster) -> Manifest:
    """Wait for the training Job of a namespace."""

    async def find() -> Manifest | None:
        found = [job async for job in there.api.list(JOBS, there.namespace)]
        return found[0] if found else None

    found: Manifest = await until(find)
    return found


async def heard_of(one: AtWork, there: Cluster, job: Manifest) -> None:
    """Wait until a Job's changes come by the watch, not only by reads."""
    name = job["metadata"]["name"]
    await there.api.merge_patch(JOBS, there.namespace, name, {"status": {"active": 1}}, "status")

    async def find() -> bool:
        status = one.training.job(there.namespace, job["metadata"]["labels"]["hmi.dev/run"])
        return status is not None and status.active == 1

    await until(find)


async def finish_deletion(kube: KubeServer, there: Cluster) -> None:
    """Do what the namespace controller does last."""
    kube.kubectl("-n", there.namespace, "delete", "jobs,pvc", "--all", "--wait=false")
    path = f"/api/v1/namespaces/{there.namespace}"
    body = json.dumps(kube.read(path) | {"spec": {"finalizers": []}})
    kube.kubectl("replace", "--raw", f"{path}/finalize", "-f", "-", stdin=body)


async def test_a_deleted_namespace_ends_and_returns_without_affecting_others(
    here: Cluster,
    kubeconfig: KubeServer,
    served: Any,
    domain_body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kube = kubeconfig
    monkeypatch.setattr("hmi_operator.kubernetes.jobs.job_watch.WATCH_SECONDS", 1)
    monkeypatch.setattr("hmi_operator.kubernetes.jobs.job_watch.RETRY_SECONDS", 0.2)
    async with cluster(kube, f"{here.namespace}-b") as there:
        for namespace in (here.namespace, there.namespace):
            give_rights(kube, here.namespace, namespace)
        monkeypatch.setenv("KUBECONFIG", log_in_as_operator(kube, here.namespace))
        async with at_work(served, here.namespace, there.namespace) as one:
            await there.apply(domain_body)
            await heard_of(one, there, await job_of(there))

            kube.kubectl("delete", "namespace", there.namespace, "--wait=false")
            kube.kubectl("-n", there.namespace, "delete", "role,rolebinding", NAME)
            await there.delete(DOMAINS, "hotel")
            await there.gone(DOMAINS, "hotel")
            await here.apply(domain_body)
            await heard_of(one, here, await job_of(here))
            await asyncio.sleep(3)  # longer than the watch that was open when the rights went
            assert one.well

            await finish_deletion(kube, there)
            kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": there.namespace}})
            give_rights(kube, here.namespace, there.namespace)
            await there.apply(domain_body)
            await heard_of(one, there, await job_of(there))
            assert one.well


async def test_a_namespace_without_rights_is_reported_and_delays_no_other(
    here: Cluster,
    kubeconfig: KubeServer,
    served: Any,
    domain_body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kube = kubeconfig
    monkeypatch.setattr("hmi_operator.kubernetes.jobs.job_watch.RETRY_SECONDS", 0.2)
    monkeypatch.setattr(
        "hmi_operator.kubernetes.jobs.training_jobs._MARGIN_SECONDS", 0.0
    )  # no controller deletes Jobs here
    async with cluster(kube, f"{here.namespace}-b") as there:
        give_rights(kube, here.namespace, here.namespace)
        monkeypatch.setenv("KUBECONFIG", log_in_as_operator(kube, here.namespace))
        async with at_work(served, here.namespace, there.namespace) as one:
            for place in (here, there):
                await place.apply(domain_body)
            await there.reached(DOMAINS, "hotel", is_refused)
            await job_of(here)
            await here.delete(DOMAINS, "hotel")
            await here.gone(DOMAINS, "hotel")

            await there.delete(DOMAINS, "hotel")
            await there.reached(DOMAINS, "hotel", has_phase("Terminating"))
            give_rights(kube, here.namespace, there.namespace)
            await there.gone(DOMAINS, "hotel")
            assert one.well


def is_refused(manifest: Manifest) -> bool:
    found = condition(manifest, "Ready")
    return found is not None and found.reason == "JobRefused" and "forbidden" in found.message
