"""A control plane at work behind real HTTP, and manifests."""

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file

from control_plane_in_memory import PROGRAM, TOKEN, FakeControlPlane


class Served:
    """The fake control plane, where it listens, and what the training program is to do."""

    def __init__(self, plane: FakeControlPlane, url: str, folder: Path) -> None:
        self.plane = plane
        self.url = url
        self.token = TOKEN
        self.behaviours = folder / "behaviours"
        self.behaviours.mkdir()
        program = folder / "training.py"
        program.write_text(PROGRAM)
        self.program = (sys.executable, str(program))
        self.environment = {
            "HMI_CONTROL_PLANE_URL": url,
            "HMI_INTERNAL_TOKEN": TOKEN,
            "BEHAVIOURS": str(self.behaviours),
        }

    def train(self, name: str, *behaviours: str) -> None:
        """Say what the runs of a resource do, one after another, the last for ever."""
        (self.behaviours / name).write_text(" ".join(behaviours))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A fake control plane at work."""
    plane = FakeControlPlane()
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(plane.app, log_level="error", lifespan="off", timeout_keep_alive=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield Served(plane, f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path)
    server.should_exit = True
    thread.join()
    listener.close()


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
