"""The resource types on a real API server: what it accepts and refuses, and how it shows them."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kube_server import KubeServer

NAMESPACE = "default"
DOMAIN: dict[str, Any] = {
    "apiVersion": "hmi.dev/v1alpha1",
    "kind": "Domain",
    "metadata": {"name": "hotel", "namespace": NAMESPACE},
    "spec": {"baseModel": {"uri": "wheel://m"}, "split": 3, "corpus": [{"uri": "s3://b/c.jsonl"}]},
}
ADAPTER: dict[str, Any] = {
    "apiVersion": "hmi.dev/v1alpha1",
    "kind": "TaskAdapter",
    "metadata": {"name": "topic", "namespace": NAMESPACE},
    "spec": {
        "domainRef": {"name": "hotel"},
        "task": {"type": "SequenceClassification"},
        "data": {"train": {"uri": "s3://b/t.jsonl"}},
    },
}


def changed(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy with one field set, or removed where ``value`` is None."""
    made = copy.deepcopy(body)
    *above, last = path.split(".")
    node = made
    for part in above:
        node = node.setdefault(part, {})
    if value is None:
        del node[last]
    else:
        node[last] = value
    return made


def dry_run(kube: KubeServer, body: dict[str, Any]) -> str:
    """Return the output of ``kubectl apply --dry-run=server``."""
    return kube.kubectl("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(body), check=False)


@pytest.fixture(scope="module")
def applied(kube: KubeServer) -> Iterator[KubeServer]:
    """The API server with one Domain and one TaskAdapter, while the tests of this file run."""
    kube.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all([DOMAIN, ADAPTER]))
    yield kube
    # Tests of other files create objects of these names in the same namespace.
    kube.kubectl("delete", "-f", "-", stdin=yaml.safe_dump_all([DOMAIN, ADAPTER]))


def test_the_definitions_are_accepted_and_complete(kube: KubeServer) -> None:
    for plural in ("domains", "taskadapters"):
        crd = json.loads(kube.kubectl("get", "crd", f"{plural}.hmi.dev", "-o", "json"))
        said = {one["type"]: one for one in crd["status"]["conditions"]}
        assert said["Established"]["status"] == "True"
        assert "NonStructuralSchema" not in said


def test_defaults_are_filled_in(applied: KubeServer) -> None:
    domain = json.loads(applied.kubectl("get", "dom", "hotel", "-o", "json"))
    assert domain["spec"]["training"]["steps"] > 0
    assert domain["spec"]["plot"]["onMiss"] == "Compute"
    adapter = json.loads(applied.kubectl("get", "ta", "topic", "-o", "json"))
    assert adapter["spec"]["serving"] == {"replicas": 1, "pinned": False, "canaryPercent": 100}


def test_short_names_and_the_category_show_the_columns(applied: KubeServer) -> None:
    wide = applied.kubectl("get", "hmi", "-o", "wide")
    assert "domain.hmi.dev/hotel" in wide
    assert "taskadapter.hmi.dev/topic" in wide
    head = applied.kubectl("get", "ta", "-A", "-o", "wide").splitlines()[0].split()
    columns = ["NAMESPACE", "NAME", "PHASE", "READY", "DOMAIN", "VERSION", "PROGRESS"]
    assert head == [*columns, "REASON", "MESSAGE", "AGE"]
    head = applied.kubectl("get", "dom").splitlines()[0].split()
    assert head == ["NAME", "PHASE", "READY", "PARENT", "HIT", "RATE", "VERSION", "PROGRESS", "AGE"]


def test_status_is_a_subresource_with_conditions_by_type(applied: KubeServer) -> None:
    one = {"status": "True", "reason": "Why", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    twice = {"status": {"conditions": [one | {"type": "Ready"}, one | {"type": "Ready"}]}}
    said = applied.kubectl(
        "patch", "ta", "topic", "--subresource=status", "--type=merge", "-p", json.dumps(twice), check=False
    )
    assert "Duplicate value" in said


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("domain.spec.plot.onMiss", "Compute"),
        ("domain.spec.sharing.namespaces", "Namespaces besides its own"),
        ("taskadapter.spec.gate", "Least metric for serving"),
        ("taskadapter.status.conditions.reason", "CamelCase"),
        ("taskadapter.spec.data.train.uri", "Where the rows are"),
    ],
)
def test_explain_describes_fields(applied: KubeServer, field: str, text: str) -> None:
    assert text in applied.kubectl("explain", field)


REFUSED = [
    ("no base model", changed(DOMAIN, "spec.baseModel", None), "spec.baseModel: Required value"),
    ("no corpus", changed(DOMAIN, "spec.corpus", []), "spec.corpus"),
    ("split of nothing", changed(DOMAIN, "spec.split", 0), "greater than or equal to 1"),
    ("misspelt field", changed(DOMAIN, "spec.corpsu", []), 'unknown field "spec.corpsu"'),
    (
        "unknown enum",
        changed(DOMAIN, "spec.plot", {"onMiss": "Guess"}),
        'supported values: "Compute", "Backoff"',
    ),
    (
        "nobody to label",
        changed(ADAPTER, "spec.data", {"train": {"uri": "s3://b/t"}, "unlabelled": {"uri": "s3://b/u"}}),
        "add training.teacher",
    ),
    ("long name", changed(DOMAIN, "metadata.name", "a" * 64), "a name has at most 63"),
    ("dotted name", changed(DOMAIN, "metadata.name", "a.b"), "a name has at most 63 lower-case letters"),
    ("no task", changed(ADAPTER, "spec.task", None), "spec.task: Required value"),
    ("neither data nor source", changed(ADAPTER, "spec.data", None), "exactly one of data"),
    (
        "both data and source",
        changed(ADAPTER, "spec.source", {"uri": "s3://b/peft"}),
        "exactly one of data (to train here) and source (to import a PEFT folder)",
    ),
    (
        "a compressed bottleneck",
        changed(ADAPTER, "spec.method", {"type": "Bottleneck", "fit": "Compressed"}),
        "fit: Compressed is for LoRA only",
    ),
    (
        "a gate above one",
        changed(ADAPTER, "spec.gate", {"metric": "accuracy", "minimum": 1.5}),
        "less than or",
    ),
    ("no replicas", changed(ADAPTER, "spec.serving", {"replicas": 0}), "spec.serving.replicas"),
    ("another base model", changed(DOMAIN, "spec.baseModel.uri", "wheel://n"), "baseModel cannot change"),
    ("another split", changed(DOMAIN, "spec.split", 4), "split cannot change; delete the resource"),
    ("no split any more", changed(DOMAIN, "spec.split", None), "split cannot change"),
    ("another Domain", changed(ADAPTER, "spec.domainRef.name", "inn"), "domainRef cannot change"),
    ("another task", changed(ADAPTER, "spec.task.type", "TokenClassification"), "task.type cannot change"),
]


@pytest.mark.parametrize(("body", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_wrong_spec_is_rejected_with_what_to_do(
    applied: KubeServer, body: dict[str, Any], message: str
) -> None:
    said = dry_run(applied, body)
    assert message in said


def test_mutable_fields_can_change(applied: KubeServer) -> None:
    for body in (
        changed(DOMAIN, "spec.training", {"steps": 7}),
        changed(DOMAIN, "spec.suspend", True),
        changed(ADAPTER, "spec.task.labels", ["a", "b"]),
        changed(ADAPTER, "spec.training", {"teacher": {}}),
        changed(ADAPTER, "spec.gate", {"metric": "accuracy", "minimum": 0.5}),
    ):
        assert "configured (server dry run)" in dry_run(applied, body)
