"""The resource types on a real API server: what it takes, what it refuses and how it shows them."""

import json

from kube_server import KubeServer


def test_the_definitions_are_accepted_and_complete(kube: KubeServer) -> None:
    for plural in ("domains", "taskadapters"):
        crd = json.loads(kube.kubectl("get", "crd", f"{plural}.hmi.dev", "-o", "json"))
        said = {one["type"]: one for one in crd["status"]["conditions"]}
        assert said["Established"]["status"] == "True"
        assert "NonStructuralSchema" not in said
