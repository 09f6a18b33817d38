"""Conditions, digests, tenants and immutable fields."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmi_api.names import digest_json, tenant_of
from hmi_api.resources.conditions import ConditionStatus, find_condition, set_condition
from hmi_api.resources.domain import Domain, OnMiss
from hmi_api.resources.spec_changes import adapter_run_digest, changed_immutables, domain_run_digest
from hmi_api.resources.task_adapter import TaskAdapter

STATUSES = st.sampled_from(list(ConditionStatus))


def domain(**spec: Any) -> Domain:
    wanted = {"baseModel": {"uri": "wheel://m"}, "corpus": [{"uri": "/c"}]} | spec
    return Domain.model_validate({"metadata": {"name": "hotel"}, "spec": wanted})


def adapter(**spec: Any) -> TaskAdapter:
    wanted = {
        "domainRef": {"name": "hotel"},
        "task": {"type": "SequenceClassification"},
        "data": {"train": {"uri": "/t"}},
    }
    return TaskAdapter.model_validate({"metadata": {"name": "topic"}, "spec": wanted | spec})


@given(STATUSES, STATUSES)
def test_a_transition_time_changes_only_with_the_status(
    first: ConditionStatus, second: ConditionStatus
) -> None:
    old = set_condition([], "Ready", first, "A", now="2026-01-01T00:00:00Z")
    new = set_condition(old, "Ready", second, "B", now="2026-01-02T00:00:00Z")
    found = find_condition(new, "Ready")
    assert found is not None
    assert found.reason == "B"
    assert (found.last_transition_time == "2026-01-02T00:00:00Z") is (first != second)


@given(st.dictionaries(st.text(), st.integers() | st.text()))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert digest_json(value) == digest_json(dict(reversed(value.items())))


def test_a_tenant_is_the_label_or_the_namespace() -> None:
    assert tenant_of("shop", {"hmi.dev/tenant": "acme"}) == "acme"
    assert tenant_of("shop", {}) == "shop"


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ({"suspend": True}, True),
        ({"sharing": {"namespaces": ["*"]}}, True),
        ({"plot": {"refresh": {"minMissRate": 0.2}}}, True),
        ({"training": {"steps": 400}}, True),
        ({"training": {"steps": 401}}, False),
        ({"plot": {"onMiss": "Backoff"}}, False),
    ],
)
def test_a_domain_is_trained_again_when_its_result_would_change(spec: dict[str, Any], same: bool) -> None:
    assert (domain_run_digest(domain(), "p") == domain_run_digest(domain(**spec), "p")) is same


@pytest.mark.parametrize(
    ("spec", "layers", "on_miss", "same"),
    [
        ({"serving": {"pinned": True}}, "l", OnMiss.COMPUTE, True),
        ({"gate": {"metric": "accuracy", "minimum": 0.5}}, "l", OnMiss.COMPUTE, False),
        ({}, "m", OnMiss.COMPUTE, False),
        ({}, "l", OnMiss.BACKOFF, False),
    ],
)
def test_an_adapter_is_trained_again_when_its_result_would_change(
    spec: dict[str, Any], layers: str, on_miss: OnMiss, same: bool
) -> None:
    first = adapter_run_digest(adapter(), "l", OnMiss.COMPUTE)
    assert (first == adapter_run_digest(adapter(**spec), layers, on_miss)) is same


def test_changed_immutable_fields_are_found() -> None:
    assert changed_immutables(domain(), domain(training={"steps": 1})) == []
    assert changed_immutables(domain(), domain(split=2, baseModel={"uri": "x"})) == [
        "spec.baseModel",
        "spec.split",
    ]
    moved = adapter(domainRef={"name": "hotel", "namespace": "default"})
    assert changed_immutables(adapter(), moved) == []
    assert changed_immutables(adapter(), domain()) == ["kind"]
