"""If an earlier spec is declared again, its version is published again if it still exists."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from hmi_api.artifacts import ArtifactFile, ArtifactKind, ArtifactManifest, artifact_uri
from hmi_api.names import digest_bytes
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import Artifact


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The artifact store of the control plane."""
    return tmp_path / "artifacts"


def publish(root: Path, kind: ArtifactKind, content: str) -> dict[str, Any]:
    """Write an artifact to the store; return its reference."""
    data = content.encode()
    file = ArtifactFile(path="weights.safetensors", digest=digest_bytes(data), bytes=len(data))
    manifest = ArtifactManifest(kind=kind, base_digest="sha256:b", files=[file]).model_dump_json().encode()
    digest = digest_bytes(manifest)
    folder = root / artifact_uri(kind, digest)
    folder.mkdir(parents=True)
    (folder / file.path).write_bytes(data)
    (folder / "manifest.json").write_bytes(manifest)
    uri = artifact_uri(kind, digest)
    return {"kind": kind.value, "uri": uri, "digest": digest, "bytes": len(data) + len(manifest)}


def trained(cluster: Any, root: Path, spec: str, **result: Any) -> Any:
    """Train the TaskAdapter from a spec; return its view."""
    artifact = publish(root, ArtifactKind.ADAPTER, f"adapter {spec}")
    cluster.retrain("spam", spec=spec, artifacts=[artifact], **result)
    return cluster.view("spam")


def again(cluster: Any, spec: str, kind: str = "adapters", name: str = "acme/spam") -> Any:
    uid = cluster.internal("GET", f"/{kind}/{name}")["record"]["uid"]
    wanted = {"uid": uid, "specDigest": digest_bytes(spec.encode())}
    return cluster.internal("POST", f"/{kind}/{name}/publish-again", wanted)["version"]


def test_an_earlier_version_is_published_under_the_next_number(
    cluster: Any, root: Path, database: Database
) -> None:
    cluster.domain()
    cluster.runtime()
    first = trained(cluster, root, "a", metrics={"accuracy": 0.7})["current"]
    assert trained(cluster, root, "b")["current"]["version"] == 2
    cluster.declare_adapter("spam", specDigest=digest_bytes(b"a"))
    assert again(cluster, "a") == 3
    view = cluster.view("spam")
    assert view["current"] == first | {"version": 3}
    assert view["scheduledOn"] == ["r1"]
    (desired,) = cluster.desired()["adapters"]
    assert (desired["version"], desired["artifact"]) == (3, first["artifact"])
    assert again(cluster, "a") == 3, "asking again changes nothing"
    cluster.internal("DELETE", "/adapters/acme/spam")
    with database.read() as session:
        left = session.scalars(select(Artifact.refcount).where(Artifact.kind == "Adapter")).all()
    assert list(left) == [0, 0], "every version is counted once, and given back once"


@pytest.mark.parametrize("lost", ["manifest.json", "weights.safetensors"])
def test_a_version_whose_files_are_missing_is_not_published_again(
    cluster: Any, root: Path, lost: str
) -> None:
    cluster.domain()
    first = trained(cluster, root, "a")["current"]
    trained(cluster, root, "b")
    cluster.declare_adapter("spam", specDigest=digest_bytes(b"a"))
    (root / first["artifact"]["uri"] / lost).unlink()
    assert again(cluster, "a") is None
    assert cluster.view("spam")["current"]["version"] == 2


def test_a_version_that_missed_its_gate_is_not_published_again(cluster: Any, root: Path) -> None:
    cluster.domain()
    trained(cluster, root, "a", gatePassed=False)
    trained(cluster, root, "b")
    cluster.declare_adapter("spam", specDigest=digest_bytes(b"a"))
    assert again(cluster, "a") is None


def test_only_a_version_of_the_declared_spec_is_published_again(cluster: Any, root: Path) -> None:
    cluster.domain()
    trained(cluster, root, "a")
    trained(cluster, root, "b")
    assert again(cluster, "a") is None, "b is declared"
    wanted = {"uid": "another", "specDigest": digest_bytes(b"b")}
    assert cluster.internal("POST", "/adapters/acme/spam/publish-again", wanted)["version"] is None
    assert cluster.internal("POST", "/adapters/acme/nobody/publish-again", wanted)["version"] is None
    assert cluster.internal("POST", "/domains/acme/nobody/publish-again", wanted)["version"] is None


def test_a_domain_version_is_published_again_with_its_layers_and_tables(cluster: Any, root: Path) -> None:
    views = []
    for spec in ("a", "b"):
        cluster.declare_domain("trade", spec=spec)
        run = cluster.domain_run("trade", spec=spec)
        layers = publish(root, ArtifactKind.LAYERS, f"layers {spec}")
        table = publish(root, ArtifactKind.TABLE, f"table {spec}")
        result = {"artifacts": [layers, table], "baseDigest": "sha256:b", "split": 3, "entries": 10}
        cluster.internal("POST", f"/runs/{run['id']}/complete", result)
        views.append(cluster.internal("GET", "/domains/acme/trade")["current"])
    cluster.declare_domain("trade", spec="a")
    assert again(cluster, "a", "domains", "acme/trade") == 3
    assert cluster.internal("GET", "/domains/acme/trade")["current"] == views[0] | {"version": 3}
