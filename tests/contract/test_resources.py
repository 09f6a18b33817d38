"""Tenants, Domains and TaskAdapters in the catalog, as the operator declares, lists and deletes them."""

from typing import Any

import pytest

from hmi_api.errors import InvalidInput
from hmi_api.internal.catalog import Revocation
from hmi_api.internal.client import Refused
from hmi_api.names import Tenant
from hmi_api.resources.task_adapter import TaskType

pytestmark = pytest.mark.anyio

HOTEL, TOPIC = "shop/hotel", "shop/topic"
GRACE = Revocation(reason="NotShared", message="The Domain is not shared any more.")
OVER = GRACE.model_copy(update={"withdraw": True})


async def declared(plane: Any, kind: str, **options: Any) -> dict[str, str]:
    """List all pages; return uids by key."""
    found: dict[str, str] = {}
    cursor = None
    while True:
        page = await plane.client.list_records(kind, cursor, **options)
        found |= {one.key: one.uid for one in page.items}
        cursor = page.next_cursor
        if cursor is None:
            return found


async def test_declared_resources_are_read_back(plane: Any) -> None:
    await plane.declare_domain(parent="shop/root", generation=7)
    view = await plane.domain()
    assert (view.record.parent, view.record.generation, view.current) == ("shop/root", 7, None)
    await plane.declare_adapter(replicas=2, pinned=True)
    record = (await plane.adapter()).record
    assert (record.domain, record.replicas, record.pinned) == (HOTEL, 2, True)
    await plane.declare_adapter(spec="2")
    assert (await plane.adapter()).record.spec_digest == "2"


async def test_a_record_of_an_unknown_tenant_is_refused(plane: Any) -> None:
    for declare in (plane.declare_domain, plane.declare_adapter):
        with pytest.raises(Refused) as caught:
            await declare(tenant="nobody")
        assert (caught.value.status, caught.value.reason) == (404, "UnknownTenant")


async def test_an_unknown_resource_is_none(plane: Any) -> None:
    assert await plane.client.domain(HOTEL) is None
    assert await plane.client.adapter(TOPIC) is None


async def test_a_tenant_may_be_created_again(plane: Any) -> None:
    for _ in range(2):
        await plane.client.ensure_tenant(Tenant("shop"))


@pytest.mark.parametrize("name", ["Shop", "shop_", "a" * 64])
async def test_a_name_that_is_no_dns_label_is_refused(plane: Any, name: str) -> None:
    with pytest.raises(Refused) as caught:
        await plane.client.ensure_tenant(Tenant(name))
    assert (caught.value.status, caught.value.reason) == (422, "InvalidField")
    with pytest.raises(Refused) as caught:
        await plane.client.domain(f"shop/{name}")
    assert caught.value.status == 422


async def test_one_tenant_has_a_name_once_in_all_its_namespaces(plane: Any) -> None:
    await plane.declare_adapter()
    with pytest.raises(Refused) as caught:
        await plane.declare_adapter("annex/topic", tenant="shop", uid="other")
    assert (caught.value.status, caught.value.reason) == (409, "NameTaken")
    await plane.declare_adapter("annex/topic", uid="other")


async def test_a_resource_does_not_change_its_tenant(plane: Any) -> None:
    await plane.client.ensure_tenant(Tenant("zoo"))
    for declare in (plane.declare_domain, plane.declare_adapter):
        await declare()
        with pytest.raises(Refused) as caught:
            await declare(tenant="zoo")
        assert (caught.value.status, caught.value.reason) == (409, "TenantChanged")


async def test_a_new_object_takes_over_versions_and_runs(plane: Any) -> None:
    await plane.published_domain()
    await plane.published_adapter()
    run = await plane.adapter_run()
    await plane.declare_domain(uid="new-hotel")
    await plane.declare_adapter(uid="new-topic")
    for view, uid in ((await plane.domain(), "new-hotel"), (await plane.adapter(), "new-topic")):
        assert (view.record.uid, view.current.version) == (uid, 1)
    assert (await plane.client.run(run.id)).uid == "new-topic", "no run is repeated"


async def test_an_object_with_another_task_type_or_base_model_starts_without_versions(plane: Any) -> None:
    await plane.published_domain()
    await plane.published_adapter()
    await plane.declare_adapter(uid="new-topic", task_type=TaskType.TOKEN_CLASSIFICATION)
    assert (await plane.adapter()).current is None
    with pytest.raises(Refused, match="DomainInUse"):
        await plane.declare_domain(uid="new-hotel", base_uri="wheel://other")
    await plane.client.delete("TaskAdapter", TOPIC)
    await plane.declare_domain(uid="new-hotel", base_uri="wheel://other")
    assert (await plane.domain()).current is None


async def test_a_domain_with_task_adapters_is_not_deleted(plane: Any) -> None:
    await plane.declare_domain()
    await plane.declare_adapter()
    with pytest.raises(Refused) as caught:
        await plane.client.delete("Domain", HOTEL)
    assert (caught.value.status, caught.value.reason) == (409, "DomainInUse")
    assert TOPIC in caught.value.message
    await plane.client.delete("TaskAdapter", TOPIC)
    await plane.client.delete("Domain", HOTEL)
    assert await plane.client.domain(HOTEL) is None


async def test_deletion_is_idempotent_and_only_of_the_object_named(plane: Any) -> None:
    for kind, declare, read, key in (
        ("TaskAdapter", plane.declare_adapter, plane.client.adapter, TOPIC),
        ("Domain", plane.declare_domain, plane.client.domain, HOTEL),
    ):
        await declare()
        await plane.client.delete(kind, key, "another")
        uid = (await read(key)).record.uid
        for _ in range(2):
            await plane.client.delete(kind, key, uid)
            assert await read(key) is None


async def test_a_resource_that_is_deleted_and_declared_again_begins_anew(plane: Any) -> None:
    await plane.published_domain()
    await plane.published_adapter()
    await plane.client.delete("TaskAdapter", TOPIC)
    await plane.declare_adapter()
    assert (await plane.adapter()).current is None
    plane.finish(await plane.adapter_run())
    assert (await plane.adapter()).current.version == 1


async def test_all_resources_are_listed_with_the_uids_of_their_objects(plane: Any) -> None:
    keys = [f"shop/task-{number}" for number in range(3)]
    for key in keys:
        await plane.declare_adapter(key)
    await plane.declare_adapter("zoo/task-0", domain="zoo/park")
    for key in (HOTEL, "zoo/park"):
        await plane.declare_domain(key)
    assert await declared(plane, "Domain") == {HOTEL: "uid-hotel", "zoo/park": "uid-park"}
    uids = {key: f"uid-{key.partition('/')[2]}" for key in [*keys, "zoo/task-0"]}
    assert await declared(plane, "TaskAdapter") == uids
    assert set(await declared(plane, "TaskAdapter", domain=HOTEL)) == set(keys)
    assert await declared(plane, "TaskAdapter", domain="shop/none") == {}


async def test_etags_are_those_of_the_views_and_unknown_keys_are_left_out(plane: Any) -> None:
    for key in (TOPIC, "shop/tone"):
        await plane.declare_adapter(key)
    etags = await plane.client.adapter_etags([TOPIC, "shop/tone", "shop/none", "nonsense"])
    views = {key: (await plane.adapter(key)).etag for key in (TOPIC, "shop/tone")}
    assert etags == views
    assert all(etags.values())
    assert await plane.client.adapter_etags([]) == {}


async def test_a_revoked_task_adapter_keeps_its_version_until_it_is_withdrawn(plane: Any) -> None:
    await plane.published_domain()
    await plane.published_adapter()
    await plane.client.revoke(TOPIC, GRACE)
    first = await plane.adapter()
    assert first.revoked_at is not None
    assert (first.withdrawn, first.current.version) == (False, 1)
    await plane.client.revoke(TOPIC, OVER)
    view = await plane.adapter()
    assert (view.revoked_at, view.withdrawn, view.current) == (first.revoked_at, True, None)
    await plane.client.delete("Domain", HOTEL)
    assert (await plane.adapter()).withdrawn, "the record stays, to answer requests with the reason"
    await plane.client.restore(TOPIC)
    view = await plane.adapter()
    assert (view.revoked_at, view.withdrawn) == (None, False)


async def test_the_run_of_a_withdrawn_task_adapter_fails_for_that_reason(plane: Any) -> None:
    await plane.published_domain()
    await plane.declare_adapter()
    run = await plane.adapter_run()
    await plane.client.revoke(TOPIC, OVER)
    failure = plane.finish(run).failure
    assert (failure.reason, failure.message) == (OVER.reason, OVER.message)


async def test_revoking_or_restoring_an_unknown_task_adapter_does_nothing(plane: Any) -> None:
    await plane.client.revoke(TOPIC, GRACE)
    await plane.client.restore(TOPIC)
    assert await plane.client.adapter(TOPIC) is None


async def test_one_cluster_has_the_catalog(plane: Any) -> None:
    claimed = await plane.client.register_cluster("one")
    assert not claimed.inherited
    again = await plane.client.register_cluster("one")
    assert again.known_seconds >= claimed.known_seconds
    with pytest.raises(InvalidInput) as caught:
        await plane.client.register_cluster("two")
    assert caught.value.reason == "OtherCluster"


async def test_a_cluster_inherits_earlier_records(plane: Any) -> None:
    await plane.declare_domain()
    for _ in range(2):
        assert (await plane.client.register_cluster("one")).inherited
