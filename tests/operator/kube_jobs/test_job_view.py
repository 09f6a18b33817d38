"""The state of a run's process, read from its Job and pods."""

from typing import Any

import pytest
from kubernetes.aio.client import V1Job, V1Pod

from hmi_operator.kubernetes.jobs.job_status import JobStatus, PodStatus, job_view, wants_pods, wants_warnings
from hmi_operator.kubernetes.jobs.job_watch import JobCache
from hmi_operator.ports import ResourceRef

MADE = "2026-11-21T12:00:00Z"
OWNER = {"apiVersion": "hmi.dev/v1alpha1", "kind": "Domain", "name": "hotel", "uid": "u1"}
CONTAINER = {"name": "training", "image": "i", "imageID": "", "ready": False, "restartCount": 0}


def job_body(*, carried: str = "0", terminating: bool = False, **status: Any) -> dict[str, Any]:
    metadata = {
        "name": "domain-hotel-1",
        "namespace": "shop",
        "uid": "job-uid",
        "creationTimestamp": MADE,
        "labels": {"hmi.dev/run": "r1", "hmi.dev/kind": "Domain", "hmi.dev/name": "hotel"},
        "annotations": {"hmi.dev/crashes": carried},
        "ownerReferences": [OWNER | {"controller": True}],
    }
    container = {"name": "training", "resources": {"limits": {"memory": "4Gi"}}}
    spec = {"activeDeadlineSeconds": 60, "template": {"spec": {"containers": [container]}}}
    if terminating:
        metadata["deletionTimestamp"] = MADE
    return {"metadata": metadata, "spec": spec, "status": status}


def as_job(body: dict[str, Any]) -> V1Job:
    found = V1Job.from_dict(body)
    assert found is not None
    return found


def job(**changes: Any) -> JobStatus:
    status = JobStatus.of(as_job(job_body(**changes)))
    assert status is not None
    return status


def pod(
    phase: str = "Pending", *, state: dict[str, Any] | None = None, made: str = MADE, **status: Any
) -> PodStatus:
    metadata = {"name": "p", "namespace": "shop", "uid": "pod-uid", "creationTimestamp": made}
    statuses = {"containerStatuses": [CONTAINER | {"state": state}]} if state else {}
    found = V1Pod.from_dict({"metadata": metadata, "status": {"phase": phase, **statuses, **status}})
    assert found is not None
    return PodStatus.of(found)


def ended(reason: str, code: int, message: str = "") -> PodStatus:
    return pod("Failed", state={"terminated": {"reason": reason, "exitCode": code, "message": message}})


def condition(type_: str, **more: str) -> list[dict[str, str]]:
    return [{"type": type_, "status": "True", "lastTransitionTime": "2026-11-21T12:05:00Z", **more}]


UNSCHEDULABLE = [
    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: no gpu"}
]
SCHEDULED = condition("PodScheduled")


@pytest.mark.parametrize(
    ("made", "alive", "queued", "crashes"),
    [
        (job(), True, True, 0),
        (job(active=1), True, True, 0),
        (job(active=1, ready=1), True, False, 0),
        (job(active=1, ready=1, failed=2), True, False, 2),
        (job(failed=2), True, True, 2),
        (job(failed=2, carried="1"), True, True, 3),
        (job(failed=4, conditions=condition("Failed", reason="BackoffLimitExceeded")), False, False, 4),
        (job(conditions=condition("Complete")), False, False, 1),
        (job(conditions=condition("Complete"), carried="1"), False, False, 2),
        (job(conditions=condition("Complete"), failed=2), False, False, 3),
        (job(conditions=condition("Failed", reason="DeadlineExceeded"), carried="1"), False, False, 2),
        (job(conditions=condition("Failed", reason="PodFailurePolicy")), False, False, 1),
        (job(terminating=True), True, True, 0),
    ],
    ids=[
        "no pod yet",
        "a pod that does not run yet",
        "at work",
        "at work again",
        "between two tries",
        "counting the Job before",
        "given up",
        "done without a result",
        "done without a result again",
        "done without a result after two tries",
        "too late, after a Job before",
        "failed at once",
        "being deleted",
    ],
)
def test_a_job_is_read_as_a_process(made: JobStatus, alive: bool, queued: bool, crashes: int) -> None:
    view = job_view(made, ())
    assert (view.alive, view.queued, view.crashes) == (alive, queued, crashes)
    assert (view.ended_at is not None) is (not alive)


@pytest.mark.parametrize(
    ("found", "reason", "tells"),
    [
        (pod(conditions=UNSCHEDULABLE), "Unschedulable", "no gpu"),
        (
            pod(
                state={"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
                conditions=SCHEDULED,
            ),
            "ImagePullBackOff",
            "no such image",
        ),
        (
            pod(
                state={
                    "waiting": {"reason": "CreateContainerConfigError", "message": 'secret "keys" not found'}
                },
                conditions=SCHEDULED,
            ),
            "CreateContainerConfigError",
            'secret "keys" not found',
        ),
        (ended("OOMKilled", 137), "OOMKilled", "limit of 4Gi"),
        (pod("Failed", reason="Evicted", message="low on memory"), "Evicted", "low on memory"),
        (ended("Error", 3), "ProcessDied", "code 3"),
        (
            ended("Error", 1, "Traceback\n  ...\nKeyError: 'x'\n\n"),
            "ProcessDied",
            "Its last message: KeyError: 'x'.",
        ),
    ],
    ids=["unschedulable", "no image", "no secret", "out of memory", "evicted", "died", "last message"],
)
def test_the_problem_says_why_the_job_does_not_run(found: PodStatus, reason: str, tells: str) -> None:
    problem = job_view(job(active=1), [found]).problem
    assert problem is not None
    assert (problem.reason, problem.final) == (reason, False)
    assert tells in problem.message


def test_the_newest_pod_determines_the_problem() -> None:
    later = pod(
        state={"waiting": {"reason": "ErrImagePull"}}, conditions=SCHEDULED, made="2026-11-21T13:00:00Z"
    )
    problem = job_view(job(active=1, failed=1), [later, ended("OOMKilled", 137)]).problem
    assert problem is not None
    assert problem.reason == "ImagePullBackOff"


def test_a_running_job_has_no_problem() -> None:
    assert job_view(job(active=1, ready=1, failed=1), [ended("OOMKilled", 137)]).problem is None
    assert not wants_pods(job(active=1, ready=1))


def test_an_exceeded_quota_is_read_from_the_jobs_warnings() -> None:
    made = job()
    assert wants_warnings(made, []) == "job-uid"
    words = 'Error creating: pods "x" is forbidden: exceeded quota: small, requested: cpu=2, used: cpu=0'
    problem = job_view(made, [], [words]).problem
    assert problem is not None
    assert problem.reason == "QuotaExceeded"
    assert "requested: cpu=2" in problem.message


def test_a_missing_config_map_is_read_from_the_pods_warnings() -> None:
    waiting = pod(state={"waiting": {"reason": "ContainerCreating"}}, conditions=SCHEDULED)
    assert wants_warnings(job(active=1), [waiting]) == "pod-uid"
    problem = job_view(job(active=1), [waiting], ['MountVolume failed: configmap "texts" not found']).problem
    assert problem is not None
    assert problem.reason == "VolumeNotMounted"
    assert '"texts" not found' in problem.message


def test_a_job_past_its_deadline_is_not_retried() -> None:
    late = job(conditions=condition("Failed", reason="DeadlineExceeded"))
    problem = job_view(late, ()).problem
    assert problem is not None
    assert problem.final
    assert "60 seconds" in problem.message


def test_the_cache_follows_a_watch_and_enqueues_the_resource() -> None:
    cache = JobCache()
    assert cache.on_job("ADDED", as_job(job_body(active=1))) == ResourceRef("Domain", "shop", "hotel")
    known = cache.job("shop", "r1")
    assert known is not None
    assert known.active == 1
    assert cache.job("elsewhere", "r1") is None
    cache.on_job("DELETED", as_job(job_body()))
    assert cache.job("shop", "r1") is None


def test_an_unchanged_job_enqueues_nothing() -> None:
    cache, ref = JobCache(), ResourceRef("Domain", "shop", "hotel")
    assert cache.on_job("ADDED", as_job(job_body())) is None, "its creator knows that it exists"
    assert cache.job("shop", "r1") is not None
    assert cache.on_job("MODIFIED", as_job(job_body(active=1))) == ref
    assert cache.on_job("MODIFIED", as_job(job_body(active=1))) is None
    assert cache.on_job("MODIFIED", as_job(job_body(conditions=condition("Complete")))) == ref
    assert cache.on_job("DELETED", as_job(job_body())) == ref


def test_an_older_jobs_deletion_does_not_hide_the_one_in_its_place() -> None:
    cache = JobCache()
    newer = job_body()
    newer["metadata"]["uid"] = "newer"
    cache.on_job("ADDED", as_job(newer))
    cache.on_job("DELETED", as_job(job_body()))
    assert cache.job("shop", "r1") is not None


def test_jobs_with_our_labels_but_another_owner_are_ignored() -> None:
    body = job_body()
    body["metadata"]["ownerReferences"] = []
    assert JobCache().on_job("ADDED", as_job(body)) is None
