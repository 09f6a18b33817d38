"""Admission reviews, answered by kopf with this operator's handlers."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from kopf_webhook import kopf_webhook

from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.resources.domain import Domain
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.kubernetes.webhook import AdmissionReviewer
from hmi_operator.planning import CLUSTER
from hmi_operator.ports import ResourceRef

ROWS = "s3://bucket/rows"


def domain(name: str = "hotel", namespace: str = "shop", **spec: Any) -> dict[str, Any]:
    wanted = {"baseModel": {"uri": "wheel://m"}, "corpus": [{"uri": ROWS}]} | spec
    return {
        "apiVersion": "hmi.dev/v1alpha1",
        "kind": "Domain",
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}"},
        "spec": wanted,
    }


def adapter(namespace: str = "shop", **spec: Any) -> dict[str, Any]:
    wanted = {
        "domainRef": {"name": "hotel", "namespace": "shop"},
        "task": {"type": "SequenceClassification"},
        "data": {"train": {"uri": ROWS}},
    } | spec
    return {
        "apiVersion": "hmi.dev/v1alpha1",
        "kind": "TaskAdapter",
        "metadata": {"name": "topic", "namespace": namespace},
        "spec": {name: value for name, value in wanted.items() if value is not None},
    }


def reviewer(*declared: dict[str, Any], not_ready: str | None = None) -> AdmissionReviewer:
    models: list[Domain | TaskAdapter] = [Domain.model_validate(body) for body in declared]
    known = {ResourceRef.of(model): model for model in models}
    return AdmissionReviewer(known.get, lambda: not_ready)


def review(body: dict[str, Any] | None, old: dict[str, Any] | None = None, **request: Any) -> dict[str, Any]:
    kind = (body or old or {})["kind"]
    resource = {"group": "hmi.dev", "version": "v1alpha1", "resource": f"{kind.lower()}s"}
    request_body = {"uid": "u1", "operation": "UPDATE" if old else "CREATE", "object": body, "oldObject": old}
    request_body |= {"resource": resource, "userInfo": {"username": "anne"}}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request_body | request}


def answered(by: AdmissionReviewer, request_body: dict[str, Any]) -> dict[str, Any]:
    call: Any = kopf_webhook(by)
    response: dict[str, Any] = asyncio.run(call(request_body))["response"]
    return response


def refusal(by: AdmissionReviewer, request_body: dict[str, Any]) -> str:
    answer = answered(by, request_body)
    assert answer["uid"] == "u1"
    assert answer["allowed"] is False, answer
    assert answer["status"]["code"] == 422
    return str(answer["status"]["message"])


def warnings(by: AdmissionReviewer, request_body: dict[str, Any]) -> list[str]:
    answer = answered(by, request_body)
    assert answer["allowed"] is True, answer
    return list(answer.get("warnings", []))


def test_a_valid_spec_is_admitted_without_warnings() -> None:
    assert warnings(reviewer(), review(domain())) == []
    assert warnings(reviewer(domain()), review(adapter())) == []


@pytest.mark.parametrize(
    ("body", "tells"),
    [
        (domain(corpus=[{"uri": "data/rows.txt"}]), "spec.corpus[0].uri"),
        (domain(corpus=[{"uri": "configmap://texts"}]), "configmap://NAME/KEY"),
        (domain(parentRef={"name": "hotel"}), "hotel -> shop/hotel"),
        (domain(bridge={"heads": 4, "haed": 1}), "spec.bridge.haed is not a field"),
        (domain(parentRef={"name": "private", "namespace": "other"}), "not shared with namespace shop"),
        (domain(parentRef={"name": "desk"}), "base model"),
        (adapter(namespace="unshared"), "not shared with namespace unshared"),
        (adapter(task={"type": "TextGeneration"}), "TextGeneration is not served"),
        (adapter(serving={"canaryPercent": 10}), "canaryPercent"),
        (
            adapter(data=None, source={"uri": ROWS}, gate={"metric": "accuracy", "minimum": 0.5}),
            "remove gate",
        ),
        (adapter(gate={"metric": "entity_f1", "minimum": 0.5}), "entity_f1 is for TokenClassification"),
        (adapter(data={"train": {"uri": "/rows"}}), "spec.data.train.uri"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_spec_is_rejected_with_what_to_do(body: dict[str, Any], tells: str) -> None:
    others = [
        domain("hotel"),
        domain("desk", baseModel={"uri": "wheel://other"}),
        domain("private", namespace="other"),
    ]
    assert tells in refusal(reviewer(*others), review(body))


def test_a_cycle_over_several_domains_is_refused() -> None:
    others = [domain("b", parentRef={"name": "c"}), domain("c", parentRef={"name": "a"})]
    changed = domain("a", parentRef={"name": "b"})
    assert "shop/a -> shop/b -> shop/c -> shop/a" in refusal(
        reviewer(domain("a"), *others), review(changed, domain("a"))
    )


@pytest.mark.parametrize(
    "body", [domain("suite", parentRef={"name": "hotel"}), adapter()], ids=["child", "adapter"]
)
def test_a_new_resource_on_a_domain_that_is_being_deleted_is_rejected(body: dict[str, Any]) -> None:
    going = domain()
    going["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    assert "shop/hotel is being deleted" in refusal(reviewer(going), review(body))
    changed = {**body, "spec": {**body["spec"], "suspend": True}}
    assert warnings(reviewer(going), review(changed, body)) == [], "it was there before"


@pytest.mark.parametrize("body", [domain(parentRef={"name": "desk"}), adapter()], ids=["parent", "domain"])
def test_a_missing_domain_is_only_a_warning(body: dict[str, Any]) -> None:
    (warning,) = warnings(reviewer(), review(body))
    assert "There is no Domain" in warning


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        (domain(), domain(baseModel={"uri": "wheel://other"}), "spec.baseModel"),
        (adapter(), adapter(domainRef={"name": "other"}), "spec.domainRef"),
        (adapter(), adapter(task={"type": "TokenClassification"}), "spec.task.type"),
    ],
)
def test_an_immutable_field_cannot_change(old: dict[str, Any], new: dict[str, Any], field: str) -> None:
    assert f"{field} cannot change" in refusal(reviewer(), review(new, old))


def test_deletions_and_status_writes_are_always_admitted() -> None:
    bad = domain(corpus=[{"uri": "data/rows.txt"}])
    going = bad | {"metadata": bad["metadata"] | {"deletionTimestamp": "2026-11-21T12:00:00Z"}}
    for request_body in (
        review(None, bad, operation="DELETE"),
        review(bad, domain(), subResource="status"),
        review(going, bad),
        review(going | {"spec": {"nonsense": 1}}, bad),
    ):
        assert warnings(reviewer(), request_body) == []


def test_an_unchanged_spec_is_admitted_even_if_invalid() -> None:
    bad = domain(corpus=[{"uri": "data/rows.txt"}])
    held = bad | {"metadata": bad["metadata"] | {"finalizers": ["hmi.dev/cleanup"]}}
    assert warnings(reviewer(), review(held, bad)) == []


def test_before_the_cache_is_complete_other_resources_cause_no_rejection() -> None:
    by = reviewer(domain(namespace="elsewhere"), not_ready="the API server's resources are not listed yet")
    assert "not listed yet" in warnings(by, review(adapter()))[0]
    assert "spec.data.train.uri" in refusal(by, review(adapter(data={"train": {"uri": "/rows"}})))


@pytest.mark.parametrize("body", [domain(namespace="kube-system"), adapter(namespace="kube-system")])
def test_nothing_is_created_in_an_excluded_namespace(body: dict[str, Any]) -> None:
    by = AdmissionReviewer({}.get, environment=replace(CLUSTER, excluded=frozenset({"kube-system"})))
    assert "creates nothing in namespace kube-system" in refusal(by, review(body))
    assert answered(by, review(domain()))["allowed"] is True


def test_an_adapter_larger_than_the_limits_is_rejected() -> None:
    environment = replace(CLUSTER, limits=AdapterLimits(max_rank=32))
    by = AdmissionReviewer(lambda _: None, environment=environment)
    assert "at most 32" in refusal(by, review(adapter(method={"size": 64})))
    assert answered(by, review(adapter(method={"size": 32})))["allowed"]
