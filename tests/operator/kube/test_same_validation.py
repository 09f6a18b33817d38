"""One validation: a real API server and HMI's own check refuse and take the same objects, alike.

Requests to the API server are strict, as kubectl's are, so that unknown fields are refused.
"""

import copy
import json
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kube_assets import CHECKOUT
from kube_server import ADMIN_TOKEN, KubeServer

from hmi_api.errors import InvalidInput
from hmi_api.resources.crd import structural_schema
from hmi_api.resources.domain import Domain
from hmi_api.resources.manifests import parse_manifest
from hmi_api.resources.schema_check import checked
from hmi_api.resources.task_adapter import TaskAdapter

Object = dict[str, Any]
NOTHING = "(removed)"
DOMAIN: Object = {
    "apiVersion": "hmi.dev/v1alpha1",
    "kind": "Domain",
    "metadata": {"name": "hotel", "namespace": "default"},
    "spec": {"baseModel": {"uri": "wheel://m"}, "corpus": [{"uri": "s3://b/c.jsonl"}]},
}
ADAPTER: Object = {
    "apiVersion": "hmi.dev/v1alpha1",
    "kind": "TaskAdapter",
    "metadata": {"name": "topic", "namespace": "default"},
    "spec": {
        "domainRef": {"name": "hotel"},
        "task": {"type": "SequenceClassification"},
        "data": {"train": {"uri": "s3://b/t.jsonl"}},
    },
}


class StrictApi:
    """An API server that validates objects without storing them."""

    def __init__(self, kube: KubeServer) -> None:
        context = ssl.create_default_context(cafile=str(kube.folder / "ca.crt"))
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        self.http = httpx.Client(base_url=kube.url, verify=context, headers=headers, timeout=30)

    def create(self, body: Object) -> tuple[Object | None, str]:
        """Return the object with its defaults, or None and why it is refused."""
        plural = {"Domain": "domains", "TaskAdapter": "taskadapters"}[body["kind"]]
        answer = self.http.post(
            f"/apis/hmi.dev/v1alpha1/namespaces/default/{plural}",
            params={"dryRun": "All", "fieldValidation": "Strict"},
            content=json.dumps(_as_kubectl_sends(body)),
            headers={"Content-Type": "application/json"},
        )
        found = answer.json()
        return (found, "") if answer.is_success else (None, str(found["message"]))


def _as_kubectl_sends(body: Object) -> Any:
    """Return an object as kubectl converts it from YAML: a whole float becomes an integer.

    Otherwise the API server refuses ``replicas: 1.0``, because its scale subresource reads an integer there.
    """
    return json.loads(json.dumps(body), parse_float=lambda text: _whole(float(text)))


def _whole(number: float) -> int | float:
    return int(number) if number.is_integer() else number


@pytest.fixture(scope="module")
def api(kube: KubeServer) -> Iterator[StrictApi]:
    api = StrictApi(kube)
    yield api
    api.http.close()


def locally(body: Object) -> tuple[Object | None, str]:
    try:
        return checked(body["kind"], body), ""
    except InvalidInput as error:
        return None, error.message


def agree(api: StrictApi, body: Object) -> Object | None:
    """Check that both say the same of an object; return it with its defaults where it is taken."""
    theirs, why = api.create(body)
    ours, reason = locally(body)
    assert (theirs is None) == (ours is None), f"{json.dumps(body)}\nAPI server: {why}\nHMI: {reason}"
    if theirs is not None and ours is not None:
        assert ours["spec"] == theirs["spec"]
        # The types read whatever the schema takes, and write nothing that it does not take.
        assert isinstance(parse_manifest(body), Domain | TaskAdapter)
    return ours


def changed(body: Object, path: str, value: Any) -> Object:
    """Return a copy with one field set; ``NOTHING`` removes it."""
    made = copy.deepcopy(body)
    *above, last = path.split(".")
    node: Any = made
    for part in above:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    if value == NOTHING:
        node.pop(last, None)
    else:
        node[last] = value
    return made


TAKEN: list[tuple[Object, str, Any]] = [
    (DOMAIN, "spec.training", {"steps": 3, "learningRate": 1, "seed": 0}),
    (DOMAIN, "spec.training", {"steps": None}),
    (DOMAIN, "spec.training", None),
    (DOMAIN, "spec.training.steps", 3.0),
    (DOMAIN, "spec.split", None),
    (DOMAIN, "spec.resources", {"requests": {"cpu": 2, "memory": "2Gi"}, "limits": {"cpu": "2000m"}}),
    (DOMAIN, "spec.resources", {"requests": {"nvidia.com/gpu": 1, "hugepages-2Mi": "4Mi"}}),
    (DOMAIN, "spec.resources", {"requests": {"memory": "1Gi"}, "limits": {"memory": "1073741824"}}),
    (DOMAIN, "spec.resources", {"requests": {"cpu": "1E", "memory": "1E3"}, "limits": {}}),
    (DOMAIN, "spec.resources.requests", {"cpu": ".5", "memory": "+1.5Gi", "ephemeral-storage": "1e3"}),
    (DOMAIN, "spec.sharing.namespaces", ["*"]),
    (DOMAIN, "spec.sharing.namespaces", ["a", "*", "team-1"]),
    (DOMAIN, "spec.sharing.namespaces", []),
    (DOMAIN, "spec.plot.refresh.schedule", "0 3 * * *"),
    (DOMAIN, "spec.plot.refresh.schedule", "*/5 1-4,7 1/2 Jan-DEC sun"),
    (DOMAIN, "spec.plot.refresh.schedule", "@weekly"),
    (DOMAIN, "spec.baseModel.uri", "models/some: folder"),
    (DOMAIN, "spec.baseModel", {"uri": "hf://a/b", "revision": None}),
    (DOMAIN, "spec.baseModel.uri", "file:///models/m"),
    (DOMAIN, "metadata.labels", {"a": "", "example.org/b": "c_d.E"}),
    (DOMAIN, "metadata.ownerReferences", []),
    (DOMAIN, "status", {"phase": "Ready"}),
    (ADAPTER, "spec.task.labels", ["no", "yes"]),
    (ADAPTER, "spec.task.labels", None),
    (ADAPTER, "spec.training.teacher", {}),
    (ADAPTER, "spec.training.teacher", None),
    (ADAPTER, "spec.gate", {"metric": "accuracy", "minimum": 1}),
    (ADAPTER, "spec.gate", None),
    (ADAPTER, "spec.source", None),
    (ADAPTER, "spec.method", {"type": "Bottleneck", "fit": None}),
    (ADAPTER, "spec.method.alpha", 0.5),
    (ADAPTER, "spec.data.train.secretRef", None),
]
REFUSED: list[tuple[Object, str, Any]] = [
    (DOMAIN, "spec", NOTHING),
    (DOMAIN, "spec", []),
    (DOMAIN, "spec.baseModel", NOTHING),
    (DOMAIN, "spec.baseModel", None),
    (DOMAIN, "spec.baseModel.uri", None),
    (DOMAIN, "spec.baseModel.uri", ""),
    (DOMAIN, "spec.baseModel.uri", "s3://bucket/model"),
    (DOMAIN, "spec.baseModel.uri", "hf://"),
    (DOMAIN, "spec.baseModel.uri", "hf://\n"),
    (DOMAIN, "spec.baseModel.uri", "HF://m"),
    (DOMAIN, "spec.baseModel.uri", 5),
    (DOMAIN, "spec.corpus", []),
    (DOMAIN, "spec.corpus", {}),
    (DOMAIN, "spec.corpus", [None]),
    (DOMAIN, "spec.corpus", [{"uri": "x"}] * 1001),
    (DOMAIN, "spec.corpus.0.textfield", "x"),
    (DOMAIN, "spec.corpus.0.textField", ""),
    (DOMAIN, "spec.corpus.0.format", "json"),
    (DOMAIN, "spec.training.steps", "3"),
    (DOMAIN, "spec.training.steps", 3.5),
    (DOMAIN, "spec.training.steps", True),
    (DOMAIN, "spec.training.steps", -1),
    (DOMAIN, "spec.training.learningRate", 0),
    (DOMAIN, "spec.training.learningRate", "1e-4"),
    (DOMAIN, "spec.training.seed", 10**30),
    (DOMAIN, "spec.suspend", "true"),
    (DOMAIN, "spec.suspend", 1),
    (DOMAIN, "spec.split", 0),
    (DOMAIN, "spec.parentRef", {}),
    (DOMAIN, "spec.parentRef.name", "Upper"),
    (DOMAIN, "spec.parentRef.name", "name\n"),
    (DOMAIN, "spec.nonsense", None),
    (DOMAIN, "spec.resources.requests", {"cpu": 0.5}),
    (DOMAIN, "spec.resources.requests", {"cpu": True}),
    (DOMAIN, "spec.resources.requests", {"cpu": -1}),
    (DOMAIN, "spec.resources.requests", {"cpu": "-1m"}),
    (DOMAIN, "spec.resources.requests", {"cpu": "much"}),
    (DOMAIN, "spec.resources.requests", {"cpu": ""}),
    (DOMAIN, "spec.resources.requests", {"cpu": "1" * 65}),
    (DOMAIN, "spec.resources.requests", {"gpu": 1}),
    (DOMAIN, "spec.resources.requests", {f"a/{number}": 1 for number in range(17)}),
    (DOMAIN, "spec.resources", {"requests": {"memory": "2Gi"}, "limits": {"memory": "2G"}}),
    (DOMAIN, "spec.resources", {"requests": {"cpu": 3}, "limits": {"cpu": "2500m"}}),
    (DOMAIN, "spec.sharing.namespaces", ["team-*"]),
    (DOMAIN, "spec.sharing.namespaces", [""]),
    (DOMAIN, "spec.sharing.namespaces", ["a" * 64]),
    (DOMAIN, "spec.sharing.namespaces", "*"),
    (DOMAIN, "spec.plot.refresh.schedule", ""),
    (DOMAIN, "spec.plot.refresh.schedule", "daily"),
    (DOMAIN, "spec.plot.refresh.schedule", "60 * * * *"),
    (DOMAIN, "spec.plot.refresh.schedule", "* * * * *\n"),
    (DOMAIN, "spec.plot.onMiss", "compute"),
    (DOMAIN, "metadata.name", "a.b"),
    (DOMAIN, "metadata.name", "a" * 64),
    (DOMAIN, "metadata.labels", {"a": 1}),
    (DOMAIN, "metadata.labels", {"a": "x y"}),
    (DOMAIN, "metadata.labels", {"a b": "x"}),
    (DOMAIN, "metadata.annotations", {"a": True}),
    (DOMAIN, "metadata.annotations", {"a b": "x"}),
    (DOMAIN, "metadata.lables", {}),
    (DOMAIN, "stutas", {}),
    (ADAPTER, "spec.task.labels", []),
    (ADAPTER, "spec.task.labels", [False, True]),
    (ADAPTER, "spec.task.labels", [1, 2]),
    (ADAPTER, "spec.task.labels", [""]),
    (ADAPTER, "spec.task.labels", [None]),
    (ADAPTER, "spec.task.labels", "no"),
    (ADAPTER, "spec.training.epochs", "3"),
    (ADAPTER, "spec.data", NOTHING),
    (ADAPTER, "spec.data", None),
    (ADAPTER, "spec.source.uri", "s3://b/peft"),
    (ADAPTER, "spec.data.unlabelled.uri", "s3://b/u"),
    (ADAPTER, "spec.method", {"type": "Bottleneck", "fit": "Compressed"}),
    (ADAPTER, "spec.method.alpha", 0),
    (ADAPTER, "spec.gate", {"metric": "accuracy", "minimum": 1.5}),
    (ADAPTER, "spec.gate", {"metric": "f1", "minimum": 0.5}),
    (ADAPTER, "spec.serving.replicas", 0),
    (ADAPTER, "spec.serving.pinned", "no"),
]


def _ids(rows: list[tuple[Object, str, Any]]) -> list[str]:
    return [f"{path}={str(value)[:30]!r}" for _, path, value in rows]


@pytest.mark.parametrize(("body", "path", "value"), TAKEN, ids=_ids(TAKEN))
def test_both_accept_it_with_the_same_defaults(api: StrictApi, body: Object, path: str, value: Any) -> None:
    assert agree(api, changed(body, path, value)) is not None


@pytest.mark.parametrize(("body", "path", "value"), REFUSED, ids=_ids(REFUSED))
def test_both_refuse_it(api: StrictApi, body: Object, path: str, value: Any) -> None:
    assert agree(api, changed(body, path, value)) is None


def test_a_message_of_a_rule_is_the_same_on_both(api: StrictApi) -> None:
    body = changed(DOMAIN, "spec.sharing.namespaces", ["team-*"])
    message = "patterns such as team-* match nothing"
    assert message in api.create(body)[1]
    assert message in locally(body)[1]


# --- objects that hypothesis makes of the schema --------------------------------------------------

_TEXTS = [
    "a",
    "*",
    "0 3 * * *",
    "@daily",
    "s3://x",
    "hf://m",
    "500m",
    "2Gi",
    "-1",
    "true",
    "",
    "A",
    "a b",
    "Ä",
    "3",
]
_KEYS = ["cpu", "memory", "nvidia.com/gpu", "gpu", ""]
_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2.0, 0.5, 10**12]),
    st.sampled_from(_TEXTS),
    st.just([]),
    st.just({}),
)


def _values(schema: Object) -> st.SearchStrategy[Any]:
    """Return values that mostly fit a schema, and now and then do not."""
    fitting = _fitting(schema)
    return st.integers(0, 24).flatmap(lambda roll: _ODD if roll == 0 else fitting)


def _fitting(schema: Object) -> st.SearchStrategy[Any]:
    low, high = schema.get("minimum", 0), schema.get("maximum", 10)
    numbers = st.sampled_from([low, high, (low + high) // 2 or 1, 1, 1.0])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "properties" in schema:
        fields = {name: _values(field) for name, field in schema["properties"].items()}
        needed = {name: fields.pop(name) for name in schema.get("required", [])}
        return st.fixed_dictionaries(needed, optional=fields)
    if "additionalProperties" in schema:
        return st.dictionaries(st.sampled_from(_KEYS), _values(schema["additionalProperties"]), max_size=3)
    if "items" in schema:
        return st.lists(_values(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
    return {
        "boolean": st.booleans(),
        "integer": numbers,
        "number": numbers,
        "string": st.sampled_from(["a", "b-2"] if "pattern" in schema else _TEXTS),
    }.get(schema.get("type", "quantity"), st.sampled_from([1, 2, "500m", "2", "2Gi", "1e3"]))


def _objects(body: Object, type_: type[Domain] | type[TaskAdapter]) -> st.SearchStrategy[Object]:
    spec = structural_schema(type_)["properties"]["spec"]
    return _values(spec).map(lambda made: {**body, "spec": made})


# Seeded, and bounded in number: each is a request to the API server.
_SETTINGS = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@_SETTINGS
@given(body=_objects(DOMAIN, Domain))
def test_both_validate_any_domain_alike(api: StrictApi, body: Object) -> None:
    agree(api, body)


@_SETTINGS
@given(body=_objects(ADAPTER, TaskAdapter))
def test_both_validate_any_adapter_alike(api: StrictApi, body: Object) -> None:
    agree(api, body)


@_SETTINGS
@given(
    amounts=st.dictionaries(
        st.sampled_from(["cpu", "memory"]), st.from_regex(r"\A[+-]?[0-9.]{0,3}[a-zA-Z]{0,2}[0-9]?\Z")
    )
)
def test_both_validate_any_quantity_alike(api: StrictApi, amounts: dict[str, str]) -> None:
    agree(
        api, changed(DOMAIN, "spec.resources", {"requests": amounts, "limits": {"cpu": "1", "memory": "1Gi"}})
    )


@_SETTINGS
@given(schedule=st.from_regex(r"\A(([*0-9,/-]{1,4}|[a-z]{3}) ){4}([*0-9,/-]{1,3})\Z"))
def test_both_validate_any_schedule_alike(api: StrictApi, schedule: str) -> None:
    agree(api, changed(DOMAIN, "spec.plot.refresh.schedule", schedule))


# --- objects of before ----------------------------------------------------------------------------


def test_an_object_stored_before_a_rule_can_still_be_changed(kube: KubeServer) -> None:
    """The API server checks a rule only on changed fields (from Kubernetes 1.30)."""
    loose: Object = json.loads(kube.kubectl("get", "crd", "taskadapters.hmi.dev", "-o", "json"))
    task = loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"][
        "task"
    ]
    del task["properties"]["labels"]["minItems"]
    old = changed(changed(ADAPTER, "spec.task.labels", []), "metadata.name", "old")
    kube.kubectl("replace", "-f", "-", stdin=json.dumps(loose))
    try:
        _until(lambda: "created" in kube.kubectl("create", "-f", "-", stdin=json.dumps(old), check=False))
    finally:
        for plural in ("domains", "taskadapters"):
            kube.kubectl("replace", "-f", str(CHECKOUT / "crds" / f"{plural}.hmi.dev.yaml"))
    other = changed(old, "metadata.name", "other")
    _until(
        lambda: (
            "labels"
            in kube.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(other), check=False)
        )
    )
    status = json.dumps({"status": {"phase": "Ready"}})
    kube.kubectl("patch", "ta", "old", "--subresource=status", "--type=merge", "-p", status)
    kube.kubectl("patch", "ta", "old", "--type=merge", "-p", json.dumps({"spec": {"suspend": True}}))
    kube.kubectl("delete", "ta", "old")


def _until(holds: Callable[[], bool]) -> None:
    """Wait until the API server has taken a changed definition up."""
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.2)
