"""The operator on a real API server, with a control plane behind HTTP and trainings that end at once."""

from typing import Any

import pytest
from kube_server import KubeServer
from operator_harness import DOMAINS, TASK_ADAPTERS, cluster, condition, has_phase, is_ready, replica

pytestmark = pytest.mark.anyio


async def test_an_adapter_applied_before_its_domain_becomes_ready(
    kubeconfig: KubeServer,
    namespace: str,
    served: Any,
    domain_body: dict[str, Any],
    adapter_body: dict[str, Any],
) -> None:
    async with cluster(kubeconfig, namespace) as here, replica(served, namespace):
        await here.apply(adapter_body)
        waiting = await here.reached(TASK_ADAPTERS, "topic", has_phase("Waiting"))
        found = condition(waiting, "DomainReady")
        assert found is not None
        assert found.reason == "DomainNotFound"
        await here.apply(domain_body)
        adapter = await here.reached(TASK_ADAPTERS, "topic", is_ready)
        assert adapter["status"]["observedGeneration"] == adapter["metadata"]["generation"]
        assert adapter["metadata"]["finalizers"] == ["hmi.dev/cleanup"]
        domain = await here.get(DOMAINS, "hotel")
        assert domain is not None
        assert is_ready(domain)
