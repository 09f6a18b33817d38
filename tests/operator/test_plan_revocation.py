"""How serving ends for a TaskAdapter that may not stand on another namespace's Domain any more."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from planning_worlds import (
    ADAPTER_DIGEST,
    DIGEST,
    NOW,
    adapter,
    adapter_version,
    adapter_world,
    domain,
    domain_version,
    domain_world,
    kinds,
    reason,
)

from hmi_api.names import DomainKey
from hmi_api.resources.common import ObjectRef
from hmi_api.resources.conditions import find_condition
from hmi_api.resources.domain import Domain, OnMiss, Sharing
from hmi_api.resources.spec_changes import adapter_run_digest
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.plan import AdapterWorld, Dependent, Plan, Standing, plan_adapter, plan_domain
from hmi_operator.plan.steps import DeclareAdapter, Erase, RemoveFinalizer, Restore, Revoke

KEY = DomainKey("shop/hotel")
GRACE = timedelta(minutes=10)
UNTIL = "2026-11-21T12:10:00Z"


def guest() -> TaskAdapter:
    """A TaskAdapter of namespace bar on shop's Domain."""
    made = adapter(domain_ref=ObjectRef(name="hotel", namespace="shop"))
    made.metadata.namespace = "bar"
    return made


GUEST_DIGEST = adapter_run_digest(guest(), "sha256:l1", OnMiss.COMPUTE)


def hotel(*shared_with: str, deleted: bool = False) -> Domain:
    made = domain(sharing=Sharing(namespaces=list(shared_with)))
    made.metadata.deletion_timestamp = "2026-11-21T12:00:00Z" if deleted else None
    return made


def world(owner: Domain, passed: timedelta | None = None, **view: Any) -> AdapterWorld:
    """The guest is published and loaded, and its right was revoked so long ago, or not at all."""
    shared = Standing(KEY, hotel("bar"), domain_version(DIGEST))
    current = adapter_version(GUEST_DIGEST)
    made = adapter_world(guest(), domain=shared, current=current, loaded_on=["r1"])
    assert made.view is not None
    revoked_at = NOW if passed is not None else None
    seen = made.view.model_copy(update={"revoked_at": revoked_at} | view)
    standing = replace(shared, domain=owner)
    return replace(made, view=seen, domain=standing, now=NOW + (passed or timedelta()))


def told(plan: Plan[Any], type_: str = "Accepted") -> str:
    found = find_condition(plan.status.conditions, type_)
    assert found is not None
    return found.message


CAUSES = [(hotel(), "NotShared"), (hotel("bar", deleted=True), "DomainTerminating")]


@pytest.mark.parametrize(("owner", "cause"), CAUSES, ids=["unshared", "deleted"])
def test_serving_ends_after_a_grace_time_that_is_told(owner: Domain, cause: str) -> None:
    noticed = plan_adapter(guest(), world(owner))
    (step,) = noticed.steps
    assert isinstance(step, Revoke)
    assert not step.revocation.withdraw
    assert reason(noticed.status.conditions, "Accepted") == ("False", cause)

    within = plan_adapter(guest(), world(owner, GRACE - timedelta(seconds=1)))
    assert within.steps == ()
    assert f"It is served until {UNTIL}." in told(within)
    assert reason(within.status.conditions, "Ready")[0] == "True"
    assert within.requeue_after == 1

    over = plan_adapter(guest(), world(owner, GRACE))
    (step,) = over.steps
    assert isinstance(step, Revoke)
    assert step.revocation.withdraw
    assert step.revocation.reason == cause
    assert "shop/hotel" in step.revocation.message

    gone = {"withdrawn": True, "current": None, "loaded_on": []}
    after = plan_adapter(guest(), world(owner, GRACE * 2, **gone))
    assert after.steps == ()
    assert "withdrawn" in told(after)
    assert after.status.phase == "Failed"
    assert reason(after.status.conditions, "Ready")[0] == "False"


def test_a_status_cannot_prolong_it() -> None:
    forged = guest()
    late = world(hotel(), GRACE)
    plan = plan_adapter(forged, world(hotel(), timedelta()))
    later = [
        one.model_copy(update={"last_transition_time": "2099-01-01T00:00:00Z"})
        for one in plan.status.conditions
    ]
    forged.status = plan.status.model_copy(update={"conditions": later})
    assert kinds(plan_adapter(forged, late).steps) == [Revoke]


@pytest.mark.parametrize("withdrawn", [False, True])
def test_sharing_again_restores_it(withdrawn: bool) -> None:
    current = None if withdrawn else adapter_version(GUEST_DIGEST)
    plan = plan_adapter(guest(), world(hotel("bar"), GRACE * 2, withdrawn=withdrawn, current=current))
    assert kinds(plan.steps)[0] is Restore
    assert (len(plan.steps) > 1) is withdrawn, "only what was withdrawn is trained again"
    assert DeclareAdapter not in kinds(plan.steps)
    assert reason(plan.status.conditions, "Accepted") == ("True", "Accepted")


def test_at_home_nothing_is_revoked() -> None:
    at_home = adapter_world(adapter(), current=adapter_version(ADAPTER_DIGEST), loaded_on=["r1"])
    going = Standing(KEY, hotel(deleted=True), domain_version(DIGEST))
    assert plan_adapter(adapter(), replace(at_home, domain=going)).steps == ()


def served_guest(**view: Any) -> Dependent:
    return Dependent(guest(), world(hotel(), timedelta(), **view).view)


def test_the_owner_sees_who_is_still_served_and_until_when() -> None:
    owner = hotel()
    plan = plan_domain(owner, domain_world(owner, dependents=(served_guest(),)))
    assert told(plan) == (
        f"Not shared any more, and served for a grace time: TaskAdapter bar/topic (served until {UNTIL})."
    )
    withdrawn = served_guest(withdrawn=True, current=None)
    assert told(plan_domain(owner, domain_world(owner, dependents=(withdrawn,)))) == ""


def test_a_domain_that_is_deleted_waits_for_a_guest_no_longer_than_the_grace() -> None:
    owner = hotel("bar", deleted=True)
    waiting = plan_domain(owner, domain_world(owner, dependents=(served_guest(),)))
    assert waiting.steps == ()
    assert f"TaskAdapter bar/topic (served until {UNTIL})" in told(waiting, "Ready")
    withdrawn = served_guest(withdrawn=True, current=None)
    going = plan_domain(owner, domain_world(owner, dependents=(withdrawn,)))
    assert kinds(going.steps) == [Erase, RemoveFinalizer], "its row stays, to answer requests with the reason"
