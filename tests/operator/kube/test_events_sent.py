"""Events as a real API server takes them."""

import asyncio
import json
from typing import Any

import pytest
from kube_server import KubeServer

from hmi_api.resources.conditions import Condition, ConditionStatus
from hmi_api.resources.domain import Domain, DomainStatus
from hmi_operator.kubernetes.client import connect
from hmi_operator.kubernetes.events import BURST, EventRecorder

pytestmark = pytest.mark.anyio
_NAMESPACE = "events-sent"


def status(reason: str) -> DomainStatus:
    stuck = Condition(
        type="Trained",
        status=ConditionStatus.FALSE,
        reason=reason,
        message=f"It is {reason}.",
        last_transition_time="2026-11-21T12:00:00Z",
    )
    return DomainStatus(conditions=[stuck])


def resource(name: str) -> Domain:
    return Domain.model_validate(
        {
            "metadata": {"name": name, "namespace": _NAMESPACE, "uid": f"uid-{name}"},
            "spec": {"baseModel": {"uri": "wheel://m"}, "corpus": [{"uri": "s3://b/c"}]},
        }
    )


def events(kube: KubeServer, name: str) -> list[dict[str, Any]]:
    said = kube.kubectl("-n", _NAMESPACE, "get", "events.events.k8s.io", "-o", "json")
    return [event for event in json.loads(said)["items"] if event["regarding"]["name"] == name]


async def test_changed_conditions_become_events_and_repeats_are_counted(
    kube: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}})
    async with connect() as client:
        recorder = EventRecorder(client, "replica-0")
        sending = asyncio.create_task(recorder.run())
        hotel, busy = resource("hotel"), resource("busy")
        for reason, before in (("OOMKilled", "Evicted"), ("Evicted", "OOMKilled"), ("OOMKilled", "Evicted")):
            recorder.record(hotel, status(before), status(reason))
        for number in range(BURST * 2):
            recorder.record(busy, DomainStatus(), status(f"Reason{number}"))
        await recorder.flush(60)
        sending.cancel()
    sent = {event["reason"]: event for event in events(kube, "hotel")}
    assert set(sent) == {"OOMKilled", "Evicted"}
    assert sent["OOMKilled"]["type"] == "Warning"
    assert sent["OOMKilled"]["note"] == "It is OOMKilled."
    assert sent["OOMKilled"]["series"]["count"] == 2
    assert "It is Evicted." in kube.kubectl("-n", _NAMESPACE, "get", "events")
    assert len(events(kube, "busy")) == BURST
