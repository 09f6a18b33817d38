"""A real API server with HMI's resource types, for the whole session."""

import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file

from kube_server import KubeServer, install_types
from kube_session import api_server
from operator_harness import Cluster, cluster

__all__ = ["api_server", "here", "kube", "kubeconfig", "namespace"]


@pytest.fixture(scope="session")
def kube(api_server: KubeServer) -> KubeServer:
    """A real kube-apiserver that knows HMI's resource types."""
    install_types(api_server)
    return api_server


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


@pytest.fixture
async def here(kubeconfig: KubeServer, namespace: str) -> AsyncIterator[Cluster]:
    """A namespace of the API server."""
    async with cluster(kubeconfig, namespace) as found:
        yield found
