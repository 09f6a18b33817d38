"""How serving ends for a TaskAdapter that may not use another namespace's Domain any more."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from planning_fixtures import (
    ADAPTER_DIGEST,
    DIGEST,
    NOW,
    adapter,
    adapter_version,
    domain,
    domain_version,
    kinds,
    observed_adapter,
    observed_domain,
    reason,
)

from hmi_api.names import DomainKey
from hmi_api.resources.common import ObjectRef
from hmi_api.resources.conditions import find_condition
from hmi_api.resources.domain import Domain, OnMiss, Sharing
from hmi_api.resources.spec_changes import adapter_run_digest
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.planning import (
    Dependent,
    DomainDependency,
    ObservedAdapter,
    Plan,
    plan_adapter,
    plan_domain,
)
from hmi_operator.planning.actions import Declare, DeleteContents, RemoveFinalizer, Restore, Revoke

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


def observed(owner: Domain, passed: timedelta | None = None, **view: Any) -> ObservedAdapter:
    """The guest is published and loaded, and its right was revoked so long ago, or not at all."""
    shared = DomainDependency(KEY, hotel("bar"), domain_version(DIGEST))
    current = adapter_version(GUEST_DIGEST)
    made = observed_adapter(guest(), domain=shared, current=current, loaded_on=["r1"])
    assert made.view is not None
    revoked_at = NOW if passed is not None else None
    seen = made.view.model_copy(update={"revoked_at": revoked_at} | view)
    dependency = replace(shared, domain=owner)
    return replace(made, view=seen, domain=dependency, now=NOW + (passed or timedelta()))


def message_of(plan: Plan[Any], type_: str = "Accepted") -> str:
    found = find_condition(plan.status.conditions, type_)
    assert found is not None
    return found.message


CAUSES = [(hotel(), "NotShared"), (hotel("bar", deleted=True), "DomainTerminating")]


@pytest.mark.parametrize(("owner", "cause"), CAUSES, ids=["unshared", "deleted"])
def test_serving_ends_after_a_grace_time_that_the_status_shows(owner: Domain, cause: str) -> None:
    noticed = plan_adapter(guest(), observed(owner))
    (action,) = noticed.actions
    assert isinstance(action, Revoke)
    assert not action.revocation.withdraw
    assert reason(noticed.status.conditions, "Accepted") == ("False", cause)

    within = plan_adapter(guest(), observed(owner, GRACE - timedelta(seconds=1)))
    assert within.actions == ()
    assert f"It is served until {UNTIL}." in message_of(within)
    assert reason(within.status.conditions, "Ready")[0] == "True"
    assert within.requeue_after == 1

    over = plan_adapter(guest(), observed(owner, GRACE))
    (action,) = over.actions
    assert isinstance(action, Revoke)
    assert action.revocation.withdraw
    assert action.revocation.reason == cause
    assert "shop/hotel" in action.revocation.message

    gone = {"withdrawn": True, "current": None, "loaded_on": []}
    after = plan_adapter(guest(), observed(owner, GRACE * 2, **gone))
    assert after.actions == ()
    assert "withdrawn" in message_of(after)
    assert after.status.phase == "Failed"
    assert reason(after.status.conditions, "Ready")[0] == "False"


def test_an_edited_status_does_not_prolong_the_grace_time() -> None:
    forged = guest()
    late = observed(hotel(), GRACE)
    plan = plan_adapter(forged, observed(hotel(), timedelta()))
    later = [
        one.model_copy(update={"last_transition_time": "2099-01-01T00:00:00Z"})
        for one in plan.status.conditions
    ]
    forged.status = plan.status.model_copy(update={"conditions": later})
    assert kinds(plan_adapter(forged, late).actions) == [Revoke]


@pytest.mark.parametrize("withdrawn", [False, True])
def test_sharing_again_ends_the_revocation(withdrawn: bool) -> None:
    current = None if withdrawn else adapter_version(GUEST_DIGEST)
    plan = plan_adapter(guest(), observed(hotel("bar"), GRACE * 2, withdrawn=withdrawn, current=current))
    assert kinds(plan.actions)[0] is Restore
    assert (len(plan.actions) > 1) is withdrawn, "only what was withdrawn is trained again"
    assert Declare not in kinds(plan.actions)
    assert reason(plan.status.conditions, "Accepted") == ("True", "Accepted")


def test_adapters_of_the_domains_own_namespace_are_not_revoked() -> None:
    at_home = observed_adapter(adapter(), current=adapter_version(ADAPTER_DIGEST), loaded_on=["r1"])
    going = DomainDependency(KEY, hotel(deleted=True), domain_version(DIGEST))
    assert plan_adapter(adapter(), replace(at_home, domain=going)).actions == ()


def served_guest(**view: Any) -> Dependent:
    return Dependent(guest(), observed(hotel(), timedelta(), **view).view)


def test_the_owner_sees_which_adapters_are_still_served_and_until_when() -> None:
    owner = hotel()
    plan = plan_domain(owner, observed_domain(owner, dependents=(served_guest(),)))
    assert message_of(plan) == (
        f"Not shared any more, and served for a grace time: TaskAdapter bar/topic (served until {UNTIL})."
    )
    withdrawn = served_guest(withdrawn=True, current=None)
    assert message_of(plan_domain(owner, observed_domain(owner, dependents=(withdrawn,)))) == ""


def test_a_deleted_domain_waits_for_other_namespaces_no_longer_than_the_grace() -> None:
    owner = hotel("bar", deleted=True)
    waiting = plan_domain(owner, observed_domain(owner, dependents=(served_guest(),)))
    assert waiting.actions == ()
    assert f"TaskAdapter bar/topic (served until {UNTIL})" in message_of(waiting, "Ready")
    withdrawn = served_guest(withdrawn=True, current=None)
    going = plan_domain(owner, observed_domain(owner, dependents=(withdrawn,)))
    assert kinds(going.actions) == [DeleteContents, RemoveFinalizer], (
        "its row stays, to answer requests with the reason"
    )
