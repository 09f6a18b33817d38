"""``kubectl apply -k examples/demo`` on a real API server."""

import json

import pytest
import yaml
from kube_assets import CHECKOUT
from kube_server import KubeServer

from hmi_api.resources.common import Namespace
from hmi_api.resources.data_addresses import MountKind, addresses_of, mounted
from hmi_api.resources.domain import Domain
from hmi_api.resources.manifests import Manifest, parse_manifest

EXAMPLES = CHECKOUT / "examples" / "demo"


@pytest.fixture(scope="module")
def objects(kube: KubeServer) -> list[dict[str, object]]:
    """What kustomize makes of the folder."""
    return list(yaml.safe_load_all(kube.kubectl("kustomize", str(EXAMPLES))))


@pytest.fixture(scope="module")
def resources(objects: list[dict[str, object]]) -> list[Manifest]:
    return [parse_manifest(body) for body in objects if body["kind"] != "ConfigMap"]


def test_every_address_names_an_existing_key(
    objects: list[dict[str, object]], resources: list[Manifest]
) -> None:
    keys = {
        (body["metadata"]["namespace"], body["metadata"]["name"], key)  # type: ignore[index]
        for body in objects
        if body["kind"] == "ConfigMap"
        for key in body["data"]  # type: ignore[attr-defined]
    }
    named = set()
    for resource in resources:
        if isinstance(resource, Namespace):
            continue
        for address in addresses_of(resource):
            found = mounted(address.uri)
            assert found is not None, address
            assert found.kind is MountKind.CONFIG_MAP
            named.add((resource.metadata.namespace, found.name, found.inside))
    assert named == keys


def test_both_kinds_are_trained_as_on_one_machine(resources: list[Manifest]) -> None:
    declared = list(yaml.safe_load_all((EXAMPLES / "tree.yaml").read_text()))
    made = {one.metadata.name: one for one in resources if isinstance(one, Domain)}
    assert set(made) == {body["metadata"]["name"] for body in declared}
    for body in declared:
        local, remote = parse_manifest(body), made[body["metadata"]["name"]]
        assert isinstance(local, Domain)
        assert local.spec.model_dump(exclude={"corpus"}) == remote.spec.model_dump(exclude={"corpus"})


def test_the_api_server_accepts_all_examples(kube: KubeServer, objects: list[dict[str, object]]) -> None:
    said = kube.kubectl("apply", "-k", str(EXAMPLES))
    assert len(said.splitlines()) == len(objects)
    kube.kubectl("apply", "-k", str(EXAMPLES))  # and a second time, as from a pipeline
    found = json.loads(kube.kubectl("get", "namespace", "commons", "-o", "json"))
    assert found["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    kube.kubectl("delete", "-k", str(EXAMPLES), "--wait=false")
