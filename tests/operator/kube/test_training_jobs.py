"""Training Jobs on a real API server; the tests do the work of the missing controllers and kubelets."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest
from kube_models import as_json
from kube_server import KubeServer
from kubernetes.aio.client import V1Job

from hmi_api.internal.runs import DomainRunSpec, RunPod, RunState, RunView
from hmi_api.resources.domain import DomainSpec
from hmi_operator.kubernetes.client import connect
from hmi_operator.kubernetes.jobs import JobCache, KubernetesTrainingJobs, TrainerSettings
from hmi_operator.kubernetes.jobs.network import build_network_policy

pytestmark = pytest.mark.anyio

SETTINGS = TrainerSettings(
    trainer_image="hmi/runtime:1",
    control_plane_url="http://control-plane",
    trainer_termination_grace_seconds=0,
)
_DOMAIN = {"baseModel": {"uri": "wheel://m"}, "corpus": [{"uri": "configmap://texts/a.txt"}]}


@pytest.fixture
def namespace(kube: KubeServer, request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    name = str(request.node.name).replace("_", "-").split("[")[0].removeprefix("test-")[:50].strip("-")
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


@pytest.fixture
def made_run(kube: KubeServer, namespace: str) -> Callable[..., RunView]:
    """Declares a Domain and returns its run."""

    def make(**changes: Any) -> RunView:
        body = {
            "apiVersion": "hmi.dev/v1alpha1",
            "kind": "Domain",
            "metadata": {"name": "hotel", "namespace": namespace},
            "spec": _DOMAIN | changes.pop("spec", {}),
        }
        kube.apply(body)
        uid = kube.read(f"/apis/hmi.dev/v1alpha1/namespaces/{namespace}/domains/hotel")["metadata"]["uid"]
        spec = DomainRunSpec(namespace=namespace, name="hotel", spec=DomainSpec.model_validate(body["spec"]))
        run = {"id": f"run-{namespace}"[:60], "uid": uid, "spec_digest": "sha256:1", "attempt": 0}
        return RunView(**(run | {"state": RunState.PENDING, "spec": spec} | changes))

    return make


@asynccontextmanager
async def at_work(
    kube: KubeServer, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> AsyncIterator[tuple[KubernetesTrainingJobs, JobCache]]:
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))
    cache = JobCache()
    async with connect() as client:
        yield KubernetesTrainingJobs(client, cache, SETTINGS.model_copy(update=changes)), cache


def listed(kube: KubeServer, namespace: str, kinds: str) -> list[dict[str, Any]]:
    found = json.loads(kube.kubectl("-n", namespace, "get", kinds, "-o", "json"))
    return list(found["items"])


def set_status(kube: KubeServer, kind: str, body: dict[str, Any], **status: Any) -> None:
    metadata = body["metadata"]
    patch = json.dumps({"status": status})
    kube.kubectl(
        "-n",
        metadata["namespace"],
        "patch",
        kind,
        metadata["name"],
        "--subresource=status",
        "--type=merge",
        "-p",
        patch,
    )


def let_go(kube: KubeServer, namespace: str) -> None:
    """Delete the objects that deleted Jobs own, as the garbage collector does."""
    ending = [job for job in listed(kube, namespace, "jobs") if "deletionTimestamp" in job["metadata"]]
    for job in ending:
        kube.kubectl(
            "-n",
            namespace,
            "patch",
            "job",
            job["metadata"]["name"],
            "--type=merge",
            "-p",
            '{"metadata":{"finalizers":null}}',
        )


def _pod(job: dict[str, Any], name: str, *, owned: bool) -> dict[str, Any]:
    """A pod with the labels of a Job's, which the Job controls or which somebody else made."""
    uid = job["metadata"]["uid"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": uid}
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": job["metadata"]["namespace"],
        "labels": {"batch.kubernetes.io/controller-uid": uid},
    }
    if owned:
        metadata["ownerReferences"] = [owner | {"controller": True}]
    spec = {"containers": [{"name": "training", "image": "i"}], "automountServiceAccountToken": False}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _ended(began: str, ended: str) -> dict[str, Any]:
    return {"startedAt": began, "finishedAt": ended, "exitCode": 0, "reason": "Completed"}


async def test_two_operators_create_one_job_for_a_run(
    kube: KubeServer, namespace: str, made_run: Callable[..., RunView], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run()
    for _ in range(2):  # two operators, one after another, that know nothing of one another
        async with at_work(kube, monkeypatch) as (jobs, _cache):
            await jobs.start(run)
            await jobs.start(run)
            view = await jobs.observe(run)
            assert view is not None
            assert (view.alive, view.queued, view.crashes) == (True, True, 0)
    (job,) = listed(kube, namespace, "jobs")
    (claim,) = listed(kube, namespace, "persistentvolumeclaims")
    assert claim["metadata"]["name"] == job["metadata"]["name"]


async def test_the_pods_of_a_job_are_reported_with_the_kubelets_times(
    kube: KubeServer, namespace: str, made_run: Callable[..., RunView], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run()
    began, ended = "2026-11-21T12:00:00Z", "2026-11-21T12:05:00Z"
    async with at_work(kube, monkeypatch) as (jobs, cache):
        await jobs.start(run)
        (job,) = listed(kube, namespace, "jobs")
        for name, owned in (("own", True), ("foreign", False)):
            kube.apply(_pod(job, name, owned=owned))
        pods = {body["metadata"]["name"]: body for body in listed(kube, namespace, "pods")}
        for state in ({"running": {"startedAt": began}}, {"terminated": _ended(began, ended)}):
            ready = int("running" in state)
            set_status(kube, "job", job, active=1, ready=ready, uncountedTerminatedPods={})
            for body in pods.values():
                container = {
                    "name": "training",
                    "image": "i",
                    "imageID": "",
                    "ready": True,
                    "restartCount": 0,
                }
                set_status(kube, "pod", body, containerStatuses=[container | {"state": state}])
            cache.on_job("MODIFIED", V1Job.from_dict(listed(kube, namespace, "jobs")[0]))
            view = await jobs.observe(run)
            assert view is not None
            finished = None if ready else datetime.fromisoformat(ended)
            uid = pods["own"]["metadata"]["uid"]
            expected = RunPod(uid=uid, started_at=datetime.fromisoformat(began), finished_at=finished)
            assert view.pods == (expected,)


async def test_a_job_that_ended_without_a_result_is_replaced_and_its_crashes_still_count(
    kube: KubeServer, namespace: str, made_run: Callable[..., RunView], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run()
    async with at_work(kube, monkeypatch) as (jobs, cache):
        await jobs.start(run)
        (job,) = listed(kube, namespace, "jobs")
        _fail(kube, job)
        cache.on_job("MODIFIED", V1Job.from_dict(listed(kube, namespace, "jobs")[0]))
        view = await jobs.observe(run)
        assert view is not None
        assert (view.alive, view.crashes) == (False, 1)
        starting = asyncio.create_task(jobs.start(run))
        while not starting.done():
            await asyncio.to_thread(let_go, kube, namespace)
        await starting
    (again,) = listed(kube, namespace, "jobs")
    assert again["metadata"]["uid"] != job["metadata"]["uid"]
    assert again["metadata"]["name"] == job["metadata"]["name"]
    assert (again["metadata"]["annotations"]["hmi.dev/crashes"], again["spec"]["backoffLimit"]) == ("1", 2)


async def test_a_job_over_quota_is_reported_and_retried(
    kube: KubeServer, namespace: str, made_run: Callable[..., RunView], monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": namespace},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    kube.apply(quota)
    set_status(kube, "resourcequota", quota, hard={"count/jobs.batch": "0"}, used={"count/jobs.batch": "0"})
    run = made_run()
    async with at_work(kube, monkeypatch) as (jobs, _cache):
        await jobs.start(run)
        view = await jobs.observe(run)
        assert view is not None
        assert view.problem is not None
        assert (view.alive, view.problem.reason, view.problem.final) == (False, "QuotaExceeded", False)
        kube.kubectl("-n", namespace, "delete", "resourcequota", "none")
        await _until_admitted(jobs, run)


async def test_a_job_that_no_api_server_admits_is_final(
    kube: KubeServer, made_run: Callable[..., RunView], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DomainSpec.model_validate(_DOMAIN | {"resources": {"limits": {"memory": "much"}}})
    run = made_run()
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"spec": spec})})
    async with at_work(kube, monkeypatch) as (jobs, _cache):
        await jobs.start(run)
        view = await jobs.observe(run)
        assert view is not None
        assert view.problem is not None
        assert (view.problem.reason, view.problem.final) == ("JobRefused", True)


async def test_warning_events_explain_why_a_pod_is_not_created(
    kube: KubeServer, namespace: str, made_run: Callable[..., RunView], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run()
    monkeypatch.setattr("hmi_operator.kubernetes.jobs.training_jobs.PATIENCE_SECONDS", 0.0)
    async with at_work(kube, monkeypatch) as (jobs, _cache):
        await jobs.start(run)
        (job,) = listed(kube, namespace, "jobs")
        kube.apply(_warning(job, 'pods "x" is forbidden: exceeded quota: small'))
        view = await jobs.observe(run)
        assert view is not None
        assert view.problem is not None
        assert view.problem.reason == "QuotaExceeded"


@pytest.mark.parametrize(
    ("state", "seconds"), [(RunState.SUCCEEDED, 600), (RunState.FAILED, 3600)], ids=["succeeded", "failed"]
)
async def test_the_volume_of_an_ended_run_is_deleted_with_its_job(
    kube: KubeServer,
    namespace: str,
    made_run: Callable[..., RunView],
    monkeypatch: pytest.MonkeyPatch,
    state: RunState,
    seconds: int,
) -> None:
    run = made_run()
    async with at_work(kube, monkeypatch) as (jobs, _cache):
        await jobs.start(run)
        await jobs.observe(run.model_copy(update={"state": state}))
    (job,), (claim,) = listed(kube, namespace, "jobs"), listed(kube, namespace, "pvc")
    assert job["spec"]["ttlSecondsAfterFinished"] == seconds
    assert "deletionTimestamp" not in claim["metadata"]
    (owner,) = claim["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Job", job["metadata"]["uid"])


async def test_the_volume_of_a_run_without_a_job_is_deleted(
    kube: KubeServer, namespace: str, made_run: Callable[..., RunView], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run()
    async with at_work(kube, monkeypatch) as (jobs, cache):
        await jobs.start(run)
        kube.kubectl("-n", namespace, "delete", "jobs", "--all")
        cache.forget(namespace, run.id)
        await jobs.observe(run.model_copy(update={"state": RunState.SUCCEEDED}))
        assert all("deletionTimestamp" in claim["metadata"] for claim in listed(kube, namespace, "pvc"))


async def test_the_log_of_a_failed_job_is_kept_when_its_run_ends(
    kube: KubeServer, namespace: str, made_run: Callable[..., RunView], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run()
    async with at_work(kube, monkeypatch) as (jobs, _cache):
        await jobs.start(run)
        _fail(kube, listed(kube, namespace, "jobs")[0])
        await jobs.stop(run.id, namespace)
    (job,), (claim,) = listed(kube, namespace, "jobs"), listed(kube, namespace, "pvc")
    assert "deletionTimestamp" not in job["metadata"]
    assert job["spec"]["ttlSecondsAfterFinished"] == 3600
    assert "deletionTimestamp" not in claim["metadata"]
    assert [owner["kind"] for owner in claim["metadata"]["ownerReferences"]] == ["Job"]


@pytest.mark.parametrize("by", ["run", "uid"])
async def test_ending_a_run_deletes_its_job_and_volume(
    kube: KubeServer,
    namespace: str,
    made_run: Callable[..., RunView],
    monkeypatch: pytest.MonkeyPatch,
    by: str,
) -> None:
    run = made_run()
    monkeypatch.setattr("hmi_operator.kubernetes.jobs.training_jobs._MARGIN_SECONDS", 0.0)
    async with at_work(kube, monkeypatch) as (jobs, _cache):
        await jobs.start(run)
        await (jobs.stop(run.id, namespace) if by == "run" else jobs.delete_all(run.uid, namespace))
        # There is no garbage collector here to finish the deletion; the request is what counts.
        assert all("deletionTimestamp" in job["metadata"] for job in listed(kube, namespace, "jobs"))
        assert all("deletionTimestamp" in claim["metadata"] for claim in listed(kube, namespace, "pvc"))
        let_go(kube, namespace)
        await jobs.delete_all(run.uid, namespace)


def _fail(kube: KubeServer, job: dict[str, Any]) -> None:
    now = "2026-11-21T12:00:00Z"
    conditions = [
        {
            "type": type_,
            "status": "True",
            "reason": "PodFailurePolicy",
            "lastTransitionTime": now,
            "message": "",
        }
        for type_ in ("FailureTarget", "Failed")
    ]
    set_status(kube, "job", job, startTime=now, failed=1, conditions=conditions)


def _warning(job: dict[str, Any], note: str) -> dict[str, Any]:
    metadata = job["metadata"]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.1", "namespace": metadata["namespace"]},
        "eventTime": "2026-11-21T12:00:00.000000Z",
        "type": "Warning",
        "reason": "FailedCreate",
        "action": "Create",
        "note": note,
        "reportingController": "job-controller",
        "reportingInstance": "test",
        "regarding": {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
    }


async def _until_admitted(jobs: KubernetesTrainingJobs, run: RunView) -> None:
    """A quota that was deleted is remembered for a moment."""
    for _ in range(50):
        await jobs.start(run)
        view = await jobs.observe(run)
        if view is not None and view.alive:
            return
    raise AssertionError("the Job was never admitted")


async def test_the_network_policy_exists_before_the_job_and_is_corrected(
    kube: KubeServer, namespace: str, made_run: Callable[..., RunView], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(kube, monkeypatch) as (jobs, _):
        await jobs.start(made_run())
    (policy,) = listed(kube, namespace, "networkpolicies")
    (job,) = listed(kube, namespace, "jobs")
    wanted = as_json(build_network_policy(namespace, SETTINGS))
    assert policy["spec"] == wanted["spec"]  # nothing is added that would look like drift
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= job["metadata"]["labels"].items()

    opened = json.dumps({"spec": {"egress": [{}]}})
    kube.kubectl("-n", namespace, "patch", "networkpolicy", "hmi-training", "--type=merge", "-p", opened)
    async with at_work(kube, monkeypatch) as (jobs, _):
        await jobs.start(made_run(id="another", attempt=1))
    (policy,) = listed(kube, namespace, "networkpolicies")
    assert policy["spec"] == wanted["spec"]


async def test_no_network_policy_is_created_if_it_is_disabled(
    kube: KubeServer, namespace: str, made_run: Callable[..., RunView], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(kube, monkeypatch, trainer_network_policy=False) as (jobs, _):
        await jobs.start(made_run())

    assert listed(kube, namespace, "networkpolicies") == []
    assert len(listed(kube, namespace, "jobs")) == 1
