"""A real API server with HMI's resource types, for the whole session."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file

from kube_assets import CHECKOUT, NoAssets, kube_assets
from kube_server import KubeServer, running_server


@pytest.fixture(scope="session")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeServer]:
    """A real kube-apiserver; skips aloud where none can be had."""
    try:
        assets = kube_assets()
    except NoAssets as reason:
        pytest.skip(str(reason))
    with running_server(assets, tmp_path_factory.mktemp("kube")) as server:
        files = sorted((CHECKOUT / "crds").glob("*.yaml"))
        server.kubectl("apply", "--server-side", *(f"--filename={file}" for file in files))
        server.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
        yield server


@pytest.fixture
def kubeconfig(kube: KubeServer, monkeypatch: pytest.MonkeyPatch) -> KubeServer:
    """The API server, named by KUBECONFIG."""
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))
    return kube


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    digest = hashlib.sha256(request.node.nodeid.encode()).hexdigest()
    return f"test-{digest[:12]}"
