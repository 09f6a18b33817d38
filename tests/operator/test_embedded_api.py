"""The resource API over HTTP: it behaves as kubectl users expect."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from fastapi import FastAPI, HTTPException, Request

from hmi_api.names import FINALIZER
from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.resources.manifests import parse_manifest
from hmi_operator.embedded import FileResourceStore, router
from hmi_operator.embedded.api import MAX_BODY_BYTES
from hmi_operator.planning import Environment
from hmi_operator.ports import ResourceRef

pytestmark = pytest.mark.anyio
ROOT = "/apis/hmi.dev/v1alpha1"
DOMAINS = f"{ROOT}/namespaces/shop/domains"
HOTEL = f"{DOMAINS}/hotel"
REF = ResourceRef("Domain", "shop", "hotel")


def must_be_admin(request: Request) -> None:
    """Replaces the embedding process's own check."""
    if request.headers.get("authorization") != "Bearer admin":
        raise HTTPException(401)


@pytest.fixture
def store(tmp_path: Path) -> FileResourceStore:
    return FileResourceStore(tmp_path / "resources")


@pytest.fixture
def app(store: FileResourceStore) -> FastAPI:
    made = FastAPI()
    made.include_router(router(store, must_be_admin))
    return made


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    headers = {"Authorization": "Bearer admin"}
    async with httpx.AsyncClient(transport=transport, base_url="http://hmi", headers=headers) as client:
        yield client


async def test_apply_creates_changes_and_keeps_unchanged_objects(
    http: httpx.AsyncClient, domain_body: dict[str, Any]
) -> None:
    text = yaml.safe_dump(domain_body)
    made = await http.patch(HOTEL, content=text, headers={"Content-Type": "application/apply-patch+yaml"})
    assert made.status_code == 201
    first = made.json()["metadata"]
    assert first["uid"]
    assert (first["generation"], first["resourceVersion"]) == (1, "1")
    same = await http.patch(HOTEL, json=domain_body)
    assert same.status_code == 200
    assert same.json()["metadata"] == first
    domain_body["spec"]["training"] = {"steps": 7}
    changed = (await http.put(HOTEL, json=domain_body)).json()["metadata"]
    assert (changed["uid"], changed["generation"]) == (first["uid"], 2)
    domain_body["metadata"]["labels"] = {"team": "a"}
    labelled = (await http.put(HOTEL, json=domain_body)).json()["metadata"]
    assert (labelled["labels"], labelled["generation"]) == ({"team": "a"}, 2)


async def test_a_dry_run_keeps_nothing(http: httpx.AsyncClient, domain_body: dict[str, Any]) -> None:
    answer = await http.patch(HOTEL, json=domain_body, params={"dryRun": "All"})
    assert answer.status_code == 201
    assert (await http.get(HOTEL)).status_code == 404


async def test_lists_of_a_namespace_and_of_all(http: httpx.AsyncClient, domain_body: dict[str, Any]) -> None:
    for namespace in ("shop", "town"):
        domain_body["metadata"]["namespace"] = namespace
        await http.post(f"{ROOT}/namespaces/{namespace}/domains", json=domain_body)
    here = (await http.get(DOMAINS)).json()
    assert (here["kind"], len(here["items"])) == ("DomainList", 1)
    everywhere = (await http.get(f"{ROOT}/domains")).json()["items"]
    assert [item["metadata"]["namespace"] for item in everywhere] == ["shop", "town"]
    assert (await http.get(f"{ROOT}/taskadapters")).json()["items"] == []


async def test_a_body_without_a_namespace_gets_that_of_its_path(
    http: httpx.AsyncClient, domain_body: dict[str, Any]
) -> None:
    del domain_body["metadata"]["namespace"]
    assert (await http.post(DOMAINS, json=domain_body)).json()["metadata"]["namespace"] == "shop"


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [(HOTEL, 404, "NotFound"), (f"{ROOT}/gadgets", 404, "NotFound")],
)
async def test_missing_objects_and_paths_are_not_found(
    http: httpx.AsyncClient, path: str, code: int, reason: str
) -> None:
    answer = await http.get(path)
    body = answer.json()
    assert (answer.status_code, body["kind"], body["reason"]) == (code, "Status", reason)


async def test_invalid_bodies_are_refused_with_a_message(
    http: httpx.AsyncClient, domain_body: dict[str, Any]
) -> None:
    typo = json.loads(json.dumps(domain_body))
    typo["spec"]["corpus"][0]["textfield"] = "x"
    cases: list[tuple[Any, int, str]] = [
        (json.dumps(typo), 422, "did you mean textField?"),
        ("a: [", 400, "neither JSON nor YAML"),
        ("", 422, "empty"),
        ("[1]", 422, "a list"),
        (json.dumps(domain_body).replace('"hotel"', '"bikes"'), 400, "shop/bikes"),
        (json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}), 400, "Namespace"),
        ("x" * (MAX_BODY_BYTES + 1), 413, "longer than"),
    ]
    for content, code, words in cases:
        answer = await http.put(HOTEL, content=content)
        assert answer.status_code == code
        assert words in answer.json()["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"metadata":' * 100_000, "nested too deeply"),
        ("- " * 100_000, "nested too deeply"),
        ("a: &a0 [x]\n" + "".join(f"{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)), "aliases"),
        ("a: 1\n---\nb: 2\n", "more than 1 documents"),
        ("kind: Domain\nkind: Domain\n", 'the key "kind" is written twice, on lines 1 and 2'),
        (b"\xff", "not UTF-8"),
    ],
    ids=lambda value: str(value)[:12],
)
async def test_a_body_that_would_take_long_to_parse_is_rejected_at_once(
    http: httpx.AsyncClient, body: str | bytes, words: str
) -> None:
    for address in (HOTEL, "/api/v1/namespaces/shop"):
        begun = time.process_time()
        answer = await http.patch(address, content=body)
        assert time.process_time() - begun < 1
        assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")
        assert words in answer.json()["message"]


async def test_reading_a_large_body_does_not_delay_other_requests(
    app: FastAPI, http: httpx.AsyncClient, domain_body: dict[str, Any]
) -> None:
    domain_body["spec"]["corpus"] = [
        {"uri": f"file:///rows/{number}", "unknown": {}} for number in range(6000)
    ]
    large = asyncio.create_task(http.put(HOTEL, content=yaml.safe_dump(domain_body)))
    longest, waited = 0.0, 0
    while not large.done():
        begun = time.monotonic()
        await http.get(HOTEL)
        longest = max(longest, time.monotonic() - begun)
        waited += 1
    took = await large
    assert took.status_code == 422
    assert waited > 20  # a loop that was held up answers one or two
    assert longest < 2


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("domains", {"training": {"steps": "3"}}, 'spec.training.steps is "3"'),
        ("domains", {"suspend": "true"}, 'spec.suspend is "true"'),
        ("domains", {"sharing": {"namespaces": ["team-*"]}}, "patterns such as team-* match nothing"),
        ("domains", {"parentRef": {"name": "hotel"}}, "their own ancestors"),
        ("taskadapters", {"training": {"epochs": "3"}}, 'spec.training.epochs is "3"'),
        (
            "taskadapters",
            {"task": {"type": "SequenceClassification", "labels": ["a", "b", "a"]}},
            "'a' more than",
        ),
        ("taskadapters", {"task": {"type": "TextGeneration"}}, "TextGeneration is not served"),
        (
            "taskadapters",
            {"gate": {"metric": "entity_f1", "minimum": 0.5}},
            "entity_f1 is for TokenClassification",
        ),
    ],
)
async def test_a_manifest_that_a_cluster_rejects_is_rejected_here(
    http: httpx.AsyncClient,
    domain_body: dict[str, Any],
    adapter_body: dict[str, Any],
    kind: str,
    change: dict[str, Any],
    words: str,
) -> None:
    body = domain_body if kind == "domains" else adapter_body
    body["spec"] |= change
    for params in ({}, {"dryRun": "All"}):
        answer = await http.put(
            f"{ROOT}/namespaces/shop/{kind}/{body['metadata']['name']}", json=body, params=params
        )
        assert answer.status_code == 422
        assert words in answer.json()["message"]


async def test_a_missing_domain_is_a_warning(
    http: httpx.AsyncClient, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    topic = f"{ROOT}/namespaces/shop/taskadapters/topic"
    early = await http.put(topic, json=adapter_body)
    assert early.status_code == 201
    assert early.headers["warning"].startswith('299 - "There is no Domain shop/hotel yet')
    await http.put(HOTEL, json=domain_body)
    adapter_body["spec"]["suspend"] = True
    assert "warning" not in (await http.put(topic, json=adapter_body)).headers


async def test_a_label_that_names_no_tenant_is_refused_by_label_and_namespace(
    http: httpx.AsyncClient,
) -> None:
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"hmi.dev/tenant": "Acme_Corp"}},
    }
    answer = await http.patch("/api/v1/namespaces/shop", json=namespace)
    assert answer.status_code == 422
    assert "Namespace shop has the label hmi.dev/tenant: 'Acme_Corp'" in answer.json()["message"]


async def test_immutable_fields_cannot_change(
    http: httpx.AsyncClient, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    await http.put(HOTEL, json=domain_body)
    domain_body["spec"]["split"] = 2
    answer = await http.put(HOTEL, json=domain_body)
    assert answer.status_code == 422
    assert "spec.split" in answer.json()["message"]
    topic = f"{ROOT}/namespaces/shop/taskadapters/topic"
    await http.put(topic, json=adapter_body)
    adapter_body["spec"]["domainRef"] = {"name": "hotel", "namespace": "shop"}
    assert (await http.put(topic, json=adapter_body)).status_code == 200
    adapter_body["spec"]["domainRef"] = {"name": "bikes"}
    assert "spec.domainRef" in (await http.put(topic, json=adapter_body)).json()["message"]


async def test_create_and_a_stale_version_conflict(
    http: httpx.AsyncClient, domain_body: dict[str, Any]
) -> None:
    await http.post(DOMAINS, json=domain_body)
    again = await http.post(DOMAINS, json=domain_body)
    assert (again.status_code, again.json()["reason"]) == (409, "AlreadyExists")
    domain_body["metadata"]["resourceVersion"] = "99"
    stale = await http.put(HOTEL, json=domain_body)
    assert (stale.status_code, stale.json()["reason"]) == (409, "Conflict")


async def test_deleting_waits_for_the_finalizer(
    http: httpx.AsyncClient, store: FileResourceStore, domain_body: dict[str, Any]
) -> None:
    uid = (await http.put(HOTEL, json=domain_body)).json()["metadata"]["uid"]
    await store.add_finalizer(REF, uid, FINALIZER)
    assert (await http.delete(HOTEL)).json()["metadata"]["deletionTimestamp"]
    assert (await http.put(HOTEL, json=domain_body)).status_code == 409
    await store.remove_finalizer(REF, uid, FINALIZER)
    assert (await http.get(HOTEL)).status_code == 404
    assert (await http.delete(HOTEL)).status_code == 404


async def test_a_namespace_names_its_tenant(http: httpx.AsyncClient, store: FileResourceStore) -> None:
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"hmi.dev/tenant": "acme"}},
    }
    assert (await http.patch("/api/v1/namespaces/shop", json=namespace)).status_code == 201
    assert await store.tenant("shop") == "acme"
    assert await store.tenant("town") == "town"
    assert len((await http.get("/api/v1/namespaces")).json()["items"]) == 1
    assert (await http.delete("/api/v1/namespaces/shop")).status_code == 200
    assert (await http.get("/api/v1/namespaces/shop")).status_code == 404


async def test_unauthenticated_requests_are_rejected(app: FastAPI) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://hmi") as anonymous:
        for method, path in (("GET", f"{ROOT}/domains"), ("PUT", HOTEL), ("DELETE", HOTEL)):
            assert (await anonymous.request(method, path)).status_code == 401


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """Serve over a real socket, since watching streams without an end."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve([listener]))
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await task
    listener.close()


async def test_a_watch_sends_present_objects_and_then_changes(
    app: FastAPI, store: FileResourceStore, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    headers = {"Authorization": "Bearer admin"}
    async with serving(app) as url, httpx.AsyncClient(base_url=url, headers=headers) as client:
        await client.put(HOTEL, json=domain_body)
        seen = []
        async with asyncio.timeout(10), client.stream("GET", DOMAINS, params={"watch": "true"}) as answer:
            async for line in answer.aiter_lines():
                seen.append(json.loads(line))
                if len(seen) == 1:
                    await store.apply(parse_manifest(adapter_body))
                    await store.delete(REF)
                else:
                    break
    assert [(event["type"], event["object"]["kind"]) for event in seen] == [
        ("ADDED", "Domain"),
        ("DELETED", "Domain"),
    ]


async def test_the_api_describes_itself(http: httpx.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    assert set(paths[ROOT + "/namespaces/{namespace}/{plural}/{name}"]) == {"get", "put", "patch", "delete"}


async def test_an_adapter_larger_than_the_limits_is_rejected(
    store: FileResourceStore, adapter_body: dict[str, Any]
) -> None:
    app = FastAPI()
    app.include_router(router(store, lambda: None, Environment(limits=AdapterLimits(max_rank=32))))
    adapter_body["spec"]["method"] = {"size": 64}
    path = f"{ROOT}/namespaces/{adapter_body['metadata']['namespace']}/taskadapters/"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://hmi") as http:
        answer = await http.patch(path + adapter_body["metadata"]["name"], json=adapter_body)
        assert answer.status_code == 422
        assert "at most 32" in answer.json()["message"]


MERGE_PATCH = {"Content-Type": "application/merge-patch+json"}


async def test_a_merge_patch_changes_parts_of_an_object(
    http: httpx.AsyncClient, domain_body: dict[str, Any]
) -> None:
    before = (await http.put(HOTEL, json=domain_body)).json()
    patch = {
        "metadata": {"annotations": {"hmi.dev/refresh": "now"}},
        "spec": {"plot": {"maxEntries": 7}},
        "status": {"phase": "Ready"},
    }
    answer = await http.patch(HOTEL, content=json.dumps(patch), headers=MERGE_PATCH)
    assert answer.status_code == 200
    after = answer.json()
    assert after["metadata"]["annotations"] == {"hmi.dev/refresh": "now"}
    assert after["spec"]["plot"]["maxEntries"] == 7
    assert after["spec"]["corpus"] == before["spec"]["corpus"]
    assert after["status"] == before["status"]
    removed = {"metadata": {"annotations": {"hmi.dev/refresh": None}}}
    after = (await http.patch(HOTEL, content=json.dumps(removed), headers=MERGE_PATCH)).json()
    assert not after["metadata"].get("annotations")


async def test_a_merge_patch_is_checked_as_an_object_is(
    http: httpx.AsyncClient, domain_body: dict[str, Any]
) -> None:
    assert (await http.patch(HOTEL, content="{}", headers=MERGE_PATCH)).status_code == 404
    await http.put(HOTEL, json=domain_body)
    wrong = [("[]", 400), ('{"spec": {"nonsense": 1}}', 422), ('{"metadata": {"name": "inn"}}', 400)]
    wrong.append(('{"metadata": {"resourceVersion": "1234567"}}', 409))
    for body, code in wrong:
        assert (await http.patch(HOTEL, content=body, headers=MERGE_PATCH)).status_code == code
