"""The fake control plane over HTTP, and manifests."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file

from fake_control_plane import TOKEN, FakeControlPlane
from reconciler_fakes import DOMAIN, TONE, Here, Jobs
from serving import serving

from hmi_api.resources.manifests import parse_manifest
from hmi_operator.embedded import FileResourceStore
from hmi_operator.ports import Ports
from hmi_operator.reconciler import Reconciler

PROGRAM = Path(__file__).with_name("training_program.py")


class Served:
    """The fake control plane, its address, and the behaviour of the training program."""

    def __init__(self, plane: FakeControlPlane, url: str, folder: Path) -> None:
        self.plane = plane
        self.catalog = plane.catalog
        self.url = url
        self.token = TOKEN
        self.behaviours = folder / "behaviours"
        self.behaviours.mkdir()
        self.program = (sys.executable, str(PROGRAM))
        self.environment = {
            "HMI_CONTROL_PLANE_URL": url,
            "HMI_INTERNAL_TOKEN": TOKEN,
            "BEHAVIOURS": str(self.behaviours),
        }

    def train(self, name: str, *behaviours: str) -> None:
        """Set the behaviours of a resource's runs, one after another; the last applies to all later ones."""
        (self.behaviours / name).write_text(" ".join(behaviours))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """The fake control plane over HTTP, with a runtime that loads at once whatever is placed on it."""
    plane = FakeControlPlane()
    plane.runtimes.start("r1")
    with serving(plane.app, lifespan="off") as url:
        yield Served(plane, url, tmp_path)


@pytest.fixture
def domain_body() -> dict[str, Any]:
    """A Domain as a user writes it."""
    return {
        "apiVersion": "hmi.dev/v1alpha1",
        "kind": "Domain",
        "metadata": {"name": "hotel", "namespace": "shop"},
        "spec": {
            "baseModel": {"uri": "wheel://m"},
            "split": 3,
            "corpus": [{"uri": "s3://bucket/c.txt", "format": "Text"}],
        },
    }


@pytest.fixture
def adapter_body() -> dict[str, Any]:
    """A TaskAdapter on it."""
    return {
        "apiVersion": "hmi.dev/v1alpha1",
        "kind": "TaskAdapter",
        "metadata": {"name": "topic", "namespace": "shop"},
        "spec": {
            "domainRef": {"name": "hotel"},
            "task": {"type": "SequenceClassification"},
            "data": {"train": {"uri": "s3://bucket/train.jsonl"}},
        },
    }


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def here(tmp_path: Path, domain_body: dict[str, Any], adapter_body: dict[str, Any]) -> Here:
    """A Domain that is published, and two TaskAdapters on it that were not reconciled yet."""
    store, plane, jobs = FileResourceStore(tmp_path), FakeControlPlane(), Jobs()
    plane.runtimes.start("r1")
    written: list[str] = []
    engine = Reconciler(
        Ports(store, plane.client(), jobs),
        on_status_change=lambda resource, old, new: written.append(new.phase),
    )
    bodies = [domain_body, adapter_body]
    bodies.append(adapter_body | {"metadata": adapter_body["metadata"] | {"name": TONE.name}})
    for body in bodies:
        await store.apply(parse_manifest(body))
    here = Here(store, plane, jobs, engine, written)
    await engine.reconcile(DOMAIN)
    here.publish(DOMAIN)
    await engine.reconcile(DOMAIN)
    return here
