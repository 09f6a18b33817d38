"""A control plane for training Jobs over real HTTP, and its callers."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from safetensors.numpy import save_file
from serving import free_port

from hmi_api.artifacts import ArtifactRef
from hmi_api.internal.trainer_client import TrainerClient
from hmi_api.security.bearer import TokenSource
from hmi_api.security.internal_auth import ServiceAccounts
from hmi_control_plane.app import create_app
from hmi_control_plane.settings import Part, Settings
from hmi_runtime.artifacts.http_store import HttpArtifactStore

BASE = "sha256:" + "0" * 64
OPERATOR = "system:serviceaccount:hmi-system:hmi-operator"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: the few statements here are tested on both where they are shared."""
    return sqlite_url


@pytest.fixture
def plane(settings: Settings, token_reviews: Any, tmp_path: Path) -> Iterator[str]:
    """The address of a control plane that serves trainers of acme and bolt over real HTTP."""
    own = tmp_path / "token"
    own.write_text("own-token")
    token_reviews.accounts |= {"operator": OPERATOR}
    token_reviews.accounts |= {name: f"system:serviceaccount:{name}:default" for name in ("acme", "bolt")}
    token_reviews.pods |= {name: f"pod-of-{name}" for name in ("acme", "bolt")}
    changed = settings.model_copy(
        update={
            "internal_token": None,
            "token_review": True,
            "roles": ServiceAccounts(operator=OPERATOR),
            "kubernetes_url": token_reviews.url,
            "kubernetes_token_file": own,
            "artifact_limit_bytes": 1 << 20,
        }
    )
    port = free_port()
    app = create_app(changed, Part.CONTROL_PLANE)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


class Party:
    """A caller of the control plane."""

    def __init__(self, plane: str, token: str) -> None:
        self.plane, self.token, self.open = plane, token, contextlib.ExitStack()
        headers = {"Authorization": f"Bearer {token}"}
        self.client = self.open.enter_context(
            httpx.Client(base_url=plane, headers=headers, timeout=60, trust_env=False)
        )

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.client.request(method, f"/internal/v1{path}", **options)

    def store(self, run: str, **options: Any) -> HttpArtifactStore:
        client = TrainerClient(self.plane, TokenSource(self.token), run, **options)
        return HttpArtifactStore(self.open.enter_context(client))

    def domain_run(self, namespace: str, *, attempt: int = 0, parent: Any = None) -> str:
        """Return the id of a run of the Domain trade in a namespace; for the operator."""
        self.call("PUT", f"/tenants/{namespace}")
        record = {"uid": f"dom-{namespace}", "tenant": namespace, "generation": 1, "specDigest": "sha256:1"}
        self.call("PUT", f"/domains/{namespace}/trade", json={**record, "baseUri": "wheel://base"})
        spec = {"baseModel": {"uri": "wheel://base"}, "corpus": [{"uri": "corpus.jsonl"}], "split": 3}
        whole = {"kind": "domain", "namespace": namespace, "name": "trade", "spec": spec, "parent": parent}
        body = {"uid": f"dom-{namespace}", "tenant": namespace, "specDigest": "sha256:1", "attempt": attempt}
        made = self.call("POST", "/runs", json={**body, "spec": whole})
        assert made.status_code == 200, made.text
        run = str(made.json()["id"])
        self.call("PUT", f"/runs/{run}/pods", json={"pods": [{"uid": f"pod-of-{namespace}"}]})
        return run

    def complete(self, run: str, *refs: ArtifactRef) -> httpx.Response:
        """Complete a run that has published ``refs``."""
        artifacts = [ref.model_dump(mode="json", by_alias=True) for ref in refs]
        body = {"artifacts": artifacts, "baseDigest": BASE, "split": 3}
        return self.call("POST", f"/runs/{run}/complete", json=body)


@pytest.fixture
def parties(plane: str) -> Iterator[dict[str, Party]]:
    made = {name: Party(plane, name) for name in ("operator", "acme", "bolt")}
    yield made
    for party in made.values():
        party.open.close()


@pytest.fixture
def operator(parties: dict[str, Party]) -> Party:
    return parties["operator"]


@pytest.fixture
def run(operator: Party) -> str:
    return operator.domain_run("acme")


@pytest.fixture
def content(tmp_path: Path) -> Path:
    folder = tmp_path / "content"
    (folder / "more").mkdir(parents=True)
    save_file({"values": np.arange(30_000, dtype=np.float32)}, folder / "t.safetensors")
    (folder / "t.json").write_text('{"rows": 4}')
    (folder / "more" / "twin.json").write_text('{"rows": 4}')
    return folder
