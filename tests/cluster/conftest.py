"""One installation on a real cluster, for the tests of the main job and of faults."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file

from administration import Administration
from diagnosis import diagnosis
from installation import CHECKOUT, Installation
from kubectl import Kubectl
from resources import Resources
from tenants import Tenants


@pytest.fixture(scope="session")
def kubectl() -> Kubectl:
    """The cluster that KUBECONFIG names."""
    if not os.environ.get("KUBECONFIG"):
        pytest.fail("KUBECONFIG names no cluster; scripts/e2e starts one and says so")
    return Kubectl(CHECKOUT)


@pytest.fixture(scope="session")
def installation(kubectl: Kubectl) -> Installation:
    """The release, installed from this checkout, with all its pods Ready."""
    release = Installation(kubectl)
    release.install()
    return release


@pytest.fixture(scope="session")
def administration(installation: Installation) -> Administration:
    """The control plane's API, through a port-forward."""
    return Administration(installation.kubectl)


@pytest.fixture(scope="session")
def tenants(installation: Installation, administration: Administration) -> Tenants:
    """Tenants that send requests from a pod."""
    made = Tenants(installation.kubectl, administration)
    made.start_client(installation)
    return made


@pytest.fixture(scope="session")
def resources(kubectl: Kubectl) -> Resources:
    """Domains and TaskAdapters."""
    return Resources(kubectl)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Iterator[None]:
    """Add the cluster's state to the report of a failed test, before it changes."""
    result: Any = yield
    report = result.get_result()
    seen = item.session.stash.setdefault(_DIAGNOSED, set())
    if report.failed and str(call.excinfo and call.excinfo.value) not in seen:
        seen.add(str(call.excinfo and call.excinfo.value))
        report.sections.append(("the cluster when it failed", diagnosis()))


_DIAGNOSED: "pytest.StashKey[set[str]]" = pytest.StashKey()
