"""The file store: whole at every moment, and nothing of one kind of write is lost by another."""

import json
from pathlib import Path
from typing import Any

import pytest

from hmi_api.names import DomainKey
from hmi_api.resources.domain import DomainStatus
from hmi_api.resources.manifests import parse_manifest
from hmi_operator.embedded import FileResourceStore
from hmi_operator.embedded.files import write_json
from hmi_operator.ports import ResourceRef

pytestmark = pytest.mark.anyio
REF = ResourceRef("Domain", "shop", "hotel")


async def applied(store: FileResourceStore, body: dict[str, Any]) -> str:
    resource, _ = await store.apply(parse_manifest(body))
    return resource.metadata.uid


async def test_resources_are_read_again_after_a_restart(tmp_path: Path, domain_body: dict[str, Any]) -> None:
    store = FileResourceStore(tmp_path)
    domain_body["metadata"]["ownerReferences"] = [{"kind": "X"}]
    uid = await applied(store, domain_body)
    await store.write_status(REF, uid, DomainStatus(phase="Ready", version=3))
    before = store.get(REF)
    reopened = FileResourceStore(tmp_path)
    assert reopened.get(REF) == before
    assert reopened.resource_version == store.resource_version


async def test_a_status_write_keeps_the_spec_and_an_apply_keeps_the_status(
    tmp_path: Path, domain_body: dict[str, Any]
) -> None:
    store = FileResourceStore(tmp_path)
    uid = await applied(store, domain_body)
    spec_file = tmp_path / "shop" / "domains" / "hotel.json"
    written = spec_file.read_text()
    await store.write_status(REF, uid, DomainStatus(phase="Ready"))
    assert spec_file.read_text() == written
    domain_body["spec"]["training"] = {"steps": 3}
    await applied(store, domain_body)
    found = store.get(REF)
    assert found is not None
    assert (found.status.phase, found.metadata.generation) == ("Ready", 2)


async def test_a_status_for_another_uid_is_not_written(tmp_path: Path, domain_body: dict[str, Any]) -> None:
    store = FileResourceStore(tmp_path)
    uid = await applied(store, domain_body)
    await store.write_status(REF, uid, DomainStatus(phase="Ready"))
    await store.write_status(REF, "somebody-else", DomainStatus(phase="Failed"))
    await store.delete(REF)
    assert await applied(store, domain_body) != uid
    fresh = FileResourceStore(tmp_path).get(REF)
    assert fresh is not None
    assert fresh.status == DomainStatus()


async def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(
    tmp_path: Path, domain_body: dict[str, Any]
) -> None:
    await applied(FileResourceStore(tmp_path), domain_body)
    (tmp_path / "shop" / "domains" / "hotel.json.part").write_text('{"half')
    assert FileResourceStore(tmp_path).get(REF) is not None


async def test_a_file_that_cannot_be_read_does_not_stop_the_others(
    tmp_path: Path, domain_body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    await applied(FileResourceStore(tmp_path), domain_body)
    folder = tmp_path / "shop" / "domains"
    (folder / "broken.json").write_text("{")
    (folder / "unknown.json").write_text('{"kind": "Domain"}')
    store = FileResourceStore(tmp_path)
    assert store.count() == 1
    assert "broken.json" in caplog.text
    assert "unknown.json" in caplog.text


async def test_the_index_follows_applied_and_deleted_resources(
    tmp_path: Path, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    store = FileResourceStore(tmp_path)
    await applied(store, adapter_body)
    child = json.loads(json.dumps(domain_body))
    child["metadata"]["name"] = "inn"
    child["spec"]["parentRef"] = {"name": "hotel"}
    await applied(store, child)
    key = DomainKey("shop/hotel")
    names = ["Domain shop/inn", "TaskAdapter shop/topic"]
    assert [str(ref) for ref in store.dependents(key)] == names
    assert [str(ref) for ref in FileResourceStore(tmp_path).dependents(key)] == names
    del child["spec"]["parentRef"]
    await applied(store, child)
    await store.delete(ResourceRef("TaskAdapter", "shop", "topic"))
    assert store.dependents(key) == []


def test_an_unwritable_value_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
