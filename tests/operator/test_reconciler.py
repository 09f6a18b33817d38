"""The effects of one reconciliation of a resource, and its number of requests."""

from typing import Any

import pytest
from fake_control_plane import Request
from reconciler_fakes import DOMAIN, ROW, TONE, TOPIC, Here

from hmi_api.internal.runs import RunCreate, RunPod, RunProgress, RunState
from hmi_api.names import FINALIZER
from hmi_api.resources.conditions import find_condition
from hmi_api.resources.manifests import parse_manifest
from hmi_operator.planning import PodProblem

pytestmark = pytest.mark.anyio


async def test_one_reconciliation_adds_the_finalizer_declares_and_starts_a_run(here: Here) -> None:
    outcome = await here.reconcile(TOPIC)
    assert here.calls == [f"GET {ROW}", f"PUT {ROW}", "POST /runs"]
    found = here.store.get(TOPIC)
    assert found is not None
    assert found.metadata.finalizers == [FINALIZER]
    assert here.written == ["Training"]
    assert found.status.run_ref in here.jobs.started
    trained = find_condition(found.status.conditions, "Trained")
    assert trained is not None
    assert trained.reason == "Running"
    assert outcome.requeue_after


async def test_a_second_reconciliation_does_nothing(here: Here) -> None:
    await here.reconcile(TOPIC)
    run = (await here.status(TOPIC)).run_ref
    await here.reconcile(TOPIC)
    assert here.calls == [f"GET /runs/{run}", f"GET {ROW}"]
    assert here.written == []
    assert len(here.catalog.runs) == 2, "the Domain's and its own"


async def test_a_problem_of_a_new_job_is_in_the_first_status(here: Here) -> None:
    here.jobs.refused = PodProblem("QuotaExceeded", "The quota is used up.")
    outcome = await here.reconcile(TOPIC)
    assert outcome.requeue_after == 0.0
    status = await here.status(TOPIC)
    assert status.run_ref in here.catalog.runs


async def test_a_run_that_has_already_ended_is_planned_again_with_its_version(here: Here) -> None:
    def publish(request: Request) -> None:
        run = here.catalog.create_run(RunCreate.model_validate_json(request.body))
        here.catalog.finish_run(run.id)

    here.plane.before("POST /runs", publish)
    outcome = await here.reconcile(TOPIC)
    assert outcome.requeue_after == 0.0
    assert (await here.status(TOPIC)).run_ref in here.catalog.runs
    assert len(here.catalog.runs) == 2, (
        "the view that the first reconciliation read is too old to start another"
    )


@pytest.mark.parametrize("active", [RunState.RUNNING, RunState.SUCCEEDED])
async def test_a_status_that_names_another_resources_run_is_not_trusted(here: Here, active: RunState) -> None:
    await here.reconcile(TONE)
    theirs = (await here.status(TONE)).run_ref
    here.catalog.report_progress(theirs, RunProgress(stage="training", step=1, total=2))
    if active is RunState.SUCCEEDED:
        here.publish(TONE)
    for forged in (theirs, "../tenants/acme", "nobody", "0" * 33, "x" * 1000):
        found = here.store.get(TOPIC)
        assert found is not None
        status = found.status.model_copy(update={"run_ref": forged})
        await here.store.write_status(TOPIC, found.metadata.uid, status)
        await here.reconcile(TOPIC)
        requested = [call for call in here.calls if call.startswith("GET /runs/")]
        assert requested == ([f"GET /runs/{theirs}"] if forged == theirs else []), "no other is requested"
        own = (await here.status(TOPIC)).run_ref
        assert here.catalog.runs[own].spec.name == TOPIC.name
        assert here.catalog.runs[theirs].state is active

    found = here.store.get(TOPIC)
    assert found is not None
    forging = found.status.model_copy(update={"run_ref": theirs})
    await here.store.write_status(TOPIC, found.metadata.uid, forging)
    await here.store.delete(TOPIC)
    await here.reconcile(TOPIC)
    assert here.catalog.runs[theirs].state is active
    assert theirs in here.jobs.started, "its process keeps running"


async def test_the_pods_of_a_run_are_reported_once_for_each_change(here: Here) -> None:
    here.jobs.pods = (RunPod(uid="p1"),)
    await here.reconcile(TOPIC)
    run = (await here.status(TOPIC)).run_ref
    assert here.catalog.pods == {run: list(here.jobs.pods)}
    await here.reconcile(TOPIC)
    assert f"PUT /runs/{run}/pods" not in here.calls
    here.jobs.pods = (RunPod(uid="p1"), RunPod(uid="p2"))
    await here.reconcile(TOPIC)
    assert here.catalog.pods == {run: list(here.jobs.pods)}


async def test_a_status_that_lost_its_run_finds_it_again(here: Here) -> None:
    await here.reconcile(TOPIC)
    found = here.store.get(TOPIC)
    assert found is not None
    run = found.status.run_ref
    await here.store.write_status(
        TOPIC, found.metadata.uid, found.status.model_copy(update={"run_ref": None})
    )
    await here.reconcile(TOPIC)
    assert (await here.status(TOPIC)).run_ref == run


async def test_a_missing_tenant_is_created(here: Here) -> None:
    here.catalog.tenants.clear()
    await here.reconcile(TOPIC)
    assert here.calls == [f"GET {ROW}", f"PUT {ROW}", "PUT /tenants/shop", f"PUT {ROW}", "POST /runs"]


async def test_dependents_are_planned_with_the_version_that_enqueued_them(here: Here) -> None:
    for ref in (TOPIC, TONE):
        await here.reconcile(ref)
    row = here.catalog.domains[DOMAIN.key]
    assert row.current is not None
    row.current = row.current.model_copy(update={"version": 2})
    outcome = await here.reconcile(DOMAIN)
    assert set(outcome.enqueue) == {TOPIC, TONE}
    for ref in outcome.enqueue:
        await here.reconcile(ref)
        assert f"GET /domains/{DOMAIN.key}" not in here.calls
        ready = find_condition((await here.status(ref)).conditions, "DomainReady")
        assert ready is not None
        assert "version 2" in ready.message


async def changed(here: Here, adapter_body: dict[str, Any], epochs: int) -> None:
    body = adapter_body | {"spec": adapter_body["spec"] | {"training": {"epochs": epochs}}}
    await here.store.apply(parse_manifest(body))


async def test_a_first_spec_requests_no_earlier_version(here: Here) -> None:
    await here.reconcile(TOPIC)
    assert f"POST {ROW}/publish-again" not in here.calls


async def test_an_earlier_spec_is_published_again_without_training(
    here: Here, adapter_body: dict[str, Any]
) -> None:
    await here.reconcile(TOPIC)
    here.publish(TOPIC)
    await here.reconcile(TOPIC)
    await changed(here, adapter_body, 7)
    await here.reconcile(TOPIC)
    assert here.calls == [f"GET {ROW}", f"PUT {ROW}", f"POST {ROW}/publish-again", "POST /runs"]
    here.publish(TOPIC)
    await here.reconcile(TOPIC)
    runs = set(here.catalog.runs)
    await here.store.apply(parse_manifest(adapter_body))
    outcome = await here.reconcile(TOPIC)
    assert here.calls[-2:] == [f"PUT {ROW}", f"POST {ROW}/publish-again"]
    assert (set(here.catalog.runs), outcome.requeue_after) == (runs, 0.0)
    current = here.catalog.adapters[TOPIC.key].current
    assert current is not None
    assert current.version == 3
