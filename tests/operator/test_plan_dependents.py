"""Which dependents block the deletion of a Domain and which do not, case by case."""

from dataclasses import replace
from typing import Any

import pytest
from planning_fixtures import (
    ADAPTER_DIGEST,
    DIGEST,
    NOW,
    TENANT,
    adapter,
    adapter_version,
    domain,
    domain_version,
    kinds,
    observed_adapter,
    observed_domain,
    reason,
)

from hmi_api.internal.catalog import AdapterRecord, AdapterView, DomainRecord, DomainView
from hmi_api.names import DomainKey
from hmi_api.resources.common import ObjectRef
from hmi_api.resources.conditions import find_condition
from hmi_api.resources.domain import Domain, Sharing
from hmi_api.resources.task_adapter import TaskAdapter, TaskType
from hmi_operator.planning import Dependent, DomainDependency, ObservedDomain, Plan, plan_adapter, plan_domain
from hmi_operator.planning.actions import DeleteContents, RemoveFinalizer, Withdraw

KEY = DomainKey("shop/hotel")
ELSEWHERE = DomainKey("shop/inn")


def gone(**spec: Any) -> Domain:
    """Return the Domain that is being deleted."""
    made = domain(**spec)
    made.metadata.deletion_timestamp = "2026-11-21T12:00:00Z"
    return made


def adapter_of(namespace: str) -> TaskAdapter:
    made = adapter(domain_ref=ObjectRef(name="hotel", namespace="shop"))
    made.metadata.namespace = namespace
    return made


def child_of(namespace: str, name: str = "suite", *, deleted: bool = False) -> Domain:
    made = domain(name, parent_ref=ObjectRef(name="hotel", namespace="shop"))
    made.metadata.namespace = namespace
    made.metadata.deletion_timestamp = "2026-11-21T12:00:00Z" if deleted else None
    return made


def adapter_view(on: DomainKey, *, published: bool) -> AdapterView:
    record = AdapterRecord(
        uid="u",
        tenant=TENANT,
        generation=1,
        spec_digest=ADAPTER_DIGEST,
        domain=on,
        task_type=TaskType.SEQUENCE_CLASSIFICATION,
    )
    return AdapterView(record=record, current=adapter_version(ADAPTER_DIGEST) if published else None)


def domain_view(on: DomainKey | None, *, published: bool) -> DomainView:
    record = DomainRecord(
        uid="u", tenant=TENANT, generation=1, spec_digest=DIGEST, base_uri="wheel://m", parent=on
    )
    return DomainView(record=record, current=domain_version(DIGEST) if published else None)


ON_IT = adapter_view(KEY, published=False)


def planned(wanted: Domain, *dependents: Dependent, lineage: tuple[DomainKey, ...] = (KEY,)) -> Plan[Any]:
    observed = ObservedDomain(now=NOW, tenant=TENANT, lineage=lineage, dependents=dependents)
    return plan_domain(wanted, observed)


def is_blocked(plan: Plan[Any]) -> bool:
    in_use = reason(plan.status.conditions, "Ready") == ("False", "InUse")
    assert in_use is (plan.actions == ())
    return in_use


@pytest.mark.parametrize(("count", "end"), [(5, "shop/topic."), (7, "shop/topic and 2 more.")])
def test_the_first_five_dependents_are_named_and_the_rest_counted(count: int, end: str) -> None:
    plan = planned(gone(), *[Dependent(adapter_of("shop"), ON_IT)] * count)
    ready = find_condition(plan.status.conditions, "Ready")
    assert ready is not None
    assert ready.message.count("shop/topic") == 5
    assert ready.message.endswith(end)


@pytest.mark.parametrize(
    ("shared_with", "dependent", "blocked"),
    [
        ([], Dependent(adapter_of("shop"), ON_IT), True),
        ([], Dependent(adapter_of("shop"), view_read=False), True),
        ([], Dependent(adapter_of("shop")), False),
        ([], Dependent(child_of("shop"), domain_view(KEY, published=False)), True),
        ([], Dependent(child_of("shop")), False),
        (["bar"], Dependent(adapter_of("bar"), ON_IT), False),
        (["bar"], Dependent(adapter_of("bar"), adapter_view(KEY, published=True)), True),
        (["bar"], Dependent(adapter_of("bar"), view_read=False), True),
        (["*"], Dependent(child_of("bar"), domain_view(KEY, published=True)), False),
        (["zoo"], Dependent(adapter_of("bar")), False),
        ([], Dependent(adapter_of("bar")), False),
        ([], Dependent(child_of("bar")), False),
        ([], Dependent(adapter_of("bar"), adapter_view(KEY, published=False)), False),
        ([], Dependent(adapter_of("bar"), adapter_view(KEY, published=True)), True),
        ([], Dependent(adapter_of("bar"), adapter_view(ELSEWHERE, published=True)), False),
        ([], Dependent(child_of("bar"), domain_view(KEY, published=False)), False),
        ([], Dependent(child_of("bar"), domain_view(KEY, published=True)), False),
        ([], Dependent(child_of("bar"), domain_view(None, published=True)), False),
    ],
)
def test_dependents_that_block_the_deletion_of_a_domain(
    shared_with: list[str], dependent: Dependent, blocked: bool
) -> None:
    assert is_blocked(planned(gone(sharing=Sharing(namespaces=shared_with)), dependent)) is blocked


@pytest.mark.parametrize(
    ("deleted", "published", "blocked"),
    [(True, False, False), (True, True, False), (False, False, False), (False, True, True)],
)
def test_domains_that_are_one_anothers_parents_do_not_wait_for_one_another(
    deleted: bool, published: bool, blocked: bool
) -> None:
    other = child_of("shop", "inn", deleted=deleted)
    lineage = (KEY, other.key, KEY)
    dependent = Dependent(other, domain_view(KEY, published=published))
    plan = planned(gone(parent_ref=ObjectRef(name="inn")), dependent, lineage=lineage)
    assert is_blocked(plan) is blocked


def test_a_domain_that_is_its_own_parent_can_be_deleted() -> None:
    itself = gone(parent_ref=ObjectRef(name="hotel"))
    own = Dependent(itself, domain_view(KEY, published=True))
    assert not is_blocked(planned(itself, own, lineage=(KEY, KEY)))


def test_an_adapter_without_access_is_withdrawn_before_its_domain_is_deleted() -> None:
    without_access = adapter_of("bar")
    known, unknown = (
        Dependent(without_access, adapter_view(KEY, published=False)),
        Dependent(adapter_of("zoo")),
    )
    plan = planned(gone(), known, unknown)
    assert kinds(plan.actions) == [Withdraw, DeleteContents, RemoveFinalizer]
    withdraw = plan.actions[0]
    assert isinstance(withdraw, Withdraw)
    assert withdraw.adapter is without_access


def test_nothing_is_withdrawn_while_others_block_the_deletion() -> None:
    known = Dependent(adapter_of("bar"), adapter_view(KEY, published=False))
    assert is_blocked(planned(gone(), known, Dependent(adapter_of("shop"), ON_IT)))


def test_new_resources_on_a_domain_that_is_being_deleted_are_rejected() -> None:
    dependency = DomainDependency(KEY, gone(), domain_version(DIGEST))
    observed = observed_adapter(adapter(), domain=dependency, view=None)
    plan = plan_adapter(adapter(), observed)
    assert reason(plan.status.conditions, "Accepted") == ("False", "DomainTerminating")
    assert (plan.status.phase, plan.actions) == ("Failed", ())

    child = domain("suite", parent_ref=ObjectRef(name="hotel"))
    domain_plan = plan_domain(child, observed_domain(child, parent=dependency, view=None))
    assert reason(domain_plan.status.conditions, "Accepted") == ("False", "DomainTerminating")
    assert domain_plan.actions == ()


def test_an_adapter_of_a_domain_that_is_being_deleted_stays_ready() -> None:
    before = observed_adapter(adapter(), current=adapter_version(ADAPTER_DIGEST), loaded_on=["r1"])
    plan = plan_adapter(
        adapter(), replace(before, domain=DomainDependency(KEY, gone(), domain_version(DIGEST)))
    )
    assert reason(plan.status.conditions, "Accepted") == ("True", "Accepted")
    assert plan.status.phase == "Ready"
