"""Objects that the API server takes and this version of the operator cannot read, as in an upgrade."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from kube_server import KubeServer
from operator_harness import DOMAINS, Cluster, cluster, condition, is_ready, replica, until

from hmi_api.names import FINALIZER

pytestmark = pytest.mark.anyio

COLOUR = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/colour"


@pytest.fixture
def newer(kubeconfig: KubeServer) -> Iterator[KubeServer]:
    """An API server whose Domains have a field that this operator does not know."""

    def patch(operation: dict[str, Any]) -> None:
        text = json.dumps([operation | {"path": COLOUR}])
        kubeconfig.kubectl("patch", "crd", "domains.hmi.dev", "--type=json", "-p", text)

    patch({"op": "add", "value": {"type": "string"}})
    yield kubeconfig
    patch({"op": "remove"})


@pytest.fixture
async def here(newer: KubeServer, namespace: str) -> AsyncIterator[Cluster]:
    async with cluster(newer, namespace) as found:
        yield found


async def test_an_invalid_object_is_reported_until_it_is_valid_and_can_be_deleted(
    here: Cluster, served: Any, domain_body: dict[str, Any]
) -> None:
    async def coloured() -> dict[str, Any] | None:
        """The API server takes a moment to know the new field; until then it leaves it out."""
        domain_body["spec"]["colour"] = "red"
        made = await here.apply(domain_body)
        return made if "colour" in made["spec"] else None

    domain_body["metadata"]["finalizers"] = [FINALIZER]
    await until(coloured)
    async with replica(served, here.namespace) as one:
        reported = await here.reached(
            DOMAINS, "hotel", lambda found: condition(found, "Accepted") is not None
        )
        accepted = condition(reported, "Accepted")
        assert accepted is not None
        assert accepted.reason == "Unreadable"
        assert "spec.colour is not a field" in accepted.message
        assert reported["status"]["phase"] == "Failed"
        domain_body["spec"]["colour"] = None
        await here.apply(domain_body)
        await here.reached(DOMAINS, "hotel", is_ready)
        domain_body["spec"]["colour"] = "blue"
        await here.apply(domain_body)
        await here.reached(DOMAINS, "hotel", lambda found: found["status"]["phase"] == "Degraded")
        await here.delete(DOMAINS, "hotel")
        await here.gone(DOMAINS, "hotel")
        assert reported["metadata"]["uid"] in one.jobs.deleted
        assert served.catalog.domains == {}
