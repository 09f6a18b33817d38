"""The API server that tests share, for whichever conftest names it."""

from collections.abc import Iterator

import pytest
from kube_assets import NoAssets, kube_assets
from kube_server import KubeServer, running_server


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeServer]:
    """A real kube-apiserver with nothing in it; skips aloud where none is installed or to be had."""
    try:
        assets = kube_assets()
    except NoAssets as reason:
        pytest.skip(str(reason))
    with running_server(assets, tmp_path_factory.mktemp("kube")) as server:
        yield server
