"""Addresses and gates that cannot work are refused before anything is trained."""

from dataclasses import replace
from typing import Any

import pytest
from planning_fixtures import adapter, domain, observed_adapter, observed_domain, reason

from hmi_api.security.address_policy import AddressPolicy
from hmi_operator.planning import CLUSTER, plan_adapter, plan_domain


@pytest.mark.parametrize(
    "uri",
    [
        "s3://b/c.txt",
        "https://example.org/c.txt",
        "configmap://texts/c.txt",
        "pvc://corpora/hotel",
        "S3://b/c",
    ],
)
def test_a_cluster_reads_four_kinds_of_addresses(uri: str) -> None:
    wanted = domain(corpus=[{"uri": uri}])
    plan = plan_domain(wanted, replace(observed_domain(wanted), environment=CLUSTER))
    assert reason(plan.status.conditions, "Accepted") == ("True", "Accepted")


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("data/c.txt", "AddressUnreachable"),
        ("/data/c.txt", "AddressUnreachable"),
        ("file:///data/c.txt", "AddressUnreachable"),
        ("ftp://example.org/c.txt", "AddressUnreachable"),
        ("http://169.254.169.254/latest", "AddressNotAllowed"),
        ("http://hmi-control-plane.hmi-system.svc/metrics", "AddressNotAllowed"),
        ("http://hmi-control-plane/metrics", "AddressNotAllowed"),
        ("https://10.0.0.1/c.txt", "AddressNotAllowed"),
        ("https://[::ffff:10.0.0.1]/c.txt", "AddressNotAllowed"),
        ("https://2130706433/c.txt", "AddressNotAllowed"),
        ("https:///c.txt", "AddressMalformed"),
        ("configmap://texts", "AddressMalformed"),
        ("pvc://corpora/../other", "AddressMalformed"),
    ],
)
def test_other_addresses_are_rejected_on_a_cluster_by_field(uri: str, why: str) -> None:
    wanted = domain(corpus=[{"uri": "s3://b/c"}, {"uri": uri}])
    plan = plan_domain(wanted, replace(observed_domain(wanted), environment=CLUSTER))
    accepted = plan.status.conditions[0]
    assert (accepted.type, accepted.status, accepted.reason) == ("Accepted", "False", why)
    assert "spec.corpus[1].uri" in accepted.message
    assert plan.status.phase == "Failed"
    if why == "AddressUnreachable":
        assert "s3://, https://, configmap://NAME/KEY or pvc://CLAIM/PATH" in accepted.message


def test_a_host_that_is_listed_is_accepted() -> None:
    listed = replace(CLUSTER, addresses=AddressPolicy(allowed_hosts=("minio.storage.svc",)))
    wanted = domain(corpus=[{"uri": "http://minio.storage.svc:9000/corpora/c.txt"}])
    plan = plan_domain(wanted, replace(observed_domain(wanted), environment=listed))
    assert reason(plan.status.conditions, "Accepted") == ("True", "Accepted")


def test_on_one_machine_any_address_may_be_tried() -> None:
    wanted = domain(corpus=[{"uri": "data/c.txt"}])
    plan = plan_domain(wanted, observed_domain(wanted))
    assert reason(plan.status.conditions, "Accepted") == ("True", "Accepted")


@pytest.mark.parametrize(
    ("origin", "field"),
    [
        ({"data": {"train": {"uri": "t"}}}, "spec.data.train.uri"),
        ({"data": {"train": {"uri": "s3://t"}, "evaluation": {"uri": "e"}}}, "spec.data.evaluation.uri"),
        (
            {"data": {"train": {"uri": "s3://t"}, "unlabelled": {"uri": "u"}}, "training": {"teacher": {}}},
            "spec.data.unlabelled.uri",
        ),
        ({"data": None, "source": {"uri": "lora"}}, "spec.source.uri"),
    ],
)
def test_a_task_adapters_addresses_are_checked_too(origin: dict[str, Any], field: str) -> None:
    wanted = adapter(**origin)
    plan = plan_adapter(wanted, replace(observed_adapter(wanted), environment=CLUSTER))
    accepted = plan.status.conditions[0]
    assert accepted.reason == "AddressUnreachable"
    assert field in accepted.message


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (
            {"data": None, "source": {"uri": "lora"}, "gate": {"metric": "accuracy", "minimum": 0.5}},
            "GateNeedsData",
        ),
        ({"gate": {"metric": "entity_f1", "minimum": 0.5}}, "GateMetricMismatch"),
    ],
)
def test_a_gate_that_cannot_be_measured_is_refused(spec: dict[str, Any], why: str) -> None:
    wanted = adapter(**spec)
    plan = plan_adapter(wanted, observed_adapter(wanted))
    assert reason(plan.status.conditions, "Accepted") == ("False", why)
