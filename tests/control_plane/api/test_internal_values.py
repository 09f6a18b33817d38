"""Values that cannot be stored are the sender's error: each internal call refuses them with a 4xx status.

Whatever is sent, on both databases: never 5xx, which a client takes for a passing fault and sends again.
"""

import base64
import copy
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

HEADERS = {"Authorization": "Bearer internal-token-of-the-tests", "Content-Type": "application/json"}

NUL, HALF = "fa\0ult", "fa\ud800ult"
TEXTS = {"NUL": NUL, "half a surrogate pair": HALF, "10,000 letters": "x" * 10_000}
NUMBERS = {
    "beyond 64 bits": 10**30,
    "5,000 digits": int("9" * 4000) * 10**1000,
    "NaN": float("nan"),
    "infinite": float("inf"),
    "negative": -1,
}
ARRAYS = {
    "half a number": base64.b64encode(bytes(4)).decode(),
    "two numbers": base64.b64encode(bytes(16)).decode(),
    "minus one": base64.b64encode(b"\xff" * 8).decode(),
}
FREE_TEXT = {"NUL": NUL, "half a surrogate pair": HALF}


def domain_record() -> dict[str, Any]:
    return {
        "uid": "u",
        "tenant": "acme",
        "generation": 1,
        "specDigest": "sha256:1",
        "baseUri": "wheel://b",
        "parent": "acme/above",
    }


def domain_run() -> dict[str, Any]:
    spec = {"baseModel": {"uri": "wheel://b"}, "corpus": [{"uri": "corpus.jsonl"}], "split": 3}
    return {
        "uid": "u",
        "tenant": "acme",
        "specDigest": "sha256:1",
        "attempt": 0,
        "spec": {"kind": "domain", "namespace": "acme", "name": "trade", "spec": spec},
    }


def result() -> dict[str, Any]:
    artifact = {"kind": "Layers", "uri": "layers/1", "digest": "sha256:l", "bytes": 10}
    return {
        "artifacts": [artifact],
        "baseDigest": "sha256:b",
        "layersDigest": "sha256:l",
        "split": 3,
        "labels": ["fault", "fine"],
        "metrics": {"accuracy": 0.5},
        "entries": 1,
        "coverage": 0.5,
        "trainingSeconds": 1.0,
    }


def registration() -> dict[str, Any]:
    return {"url": "http://r1", "device": "cpu", "capacityBytes": 100, "incarnation": "one"}


def heartbeat() -> dict[str, Any]:
    return {
        "incarnation": "one",
        "ready": [{"adapter": "acme/spam", "version": 1}],
        "gone": [{"adapter": "acme/spam", "version": 2}],
        "failed": [{"adapter": "acme/spam", "version": 1, "reason": "Why", "message": "So."}],
        "resident": [{"kind": "adapter", "tier": "host", "bytes": 1}],
        "freeBytes": 1,
        "queueDepth": 1,
    }


def window_counts() -> dict[str, Any]:
    one = base64.b64encode(b"\x01" + bytes(7)).decode()
    domain = {"domain": "acme/trade", "version": 1, "layersDigest": "sha256:l", "lookups": 1, "hits": 1}
    tenants = [{"tenantId": "tenant_1", "keys": one, "counts": one}]
    return {"incarnation": "one", "sequence": 1, "domains": [domain | {"tenants": tenants}]}


def adapter_record() -> dict[str, Any]:
    record = domain_record() | {"domain": "acme/trade", "taskType": "SequenceClassification", "replicas": 1}
    return {name: value for name, value in record.items() if name not in ("baseUri", "parent")}


Case = tuple[str, str, dict[str, Any], tuple[str | int, ...], Any]


def cases() -> Iterator[Any]:
    """Every field of every body, with every value that no database can store."""
    progress = {"stage": "training", "step": 1, "total": 2, "metrics": {"loss": 0.5}}
    calls: list[tuple[str, str, dict[str, Any], dict[tuple[str | int, ...], dict[str, Any]]]] = [
        (
            "PUT",
            "/domains/acme/other",
            domain_record(),
            {(name,): TEXTS for name in ("uid", "tenant", "specDigest", "parent")}
            | {("generation",): NUMBERS, ("baseUri",): FREE_TEXT},
        ),
        (
            "PUT",
            "/adapters/acme/other",
            adapter_record(),
            {(name,): TEXTS for name in ("uid", "tenant", "specDigest", "domain")}
            | {("generation",): NUMBERS, ("replicas",): NUMBERS},
        ),
        ("POST", "/adapters/etags", {"keys": ["acme/one"]}, {("keys", 0): TEXTS}),
        (
            "POST",
            "/runs",
            domain_run(),
            {(name,): TEXTS for name in ("uid", "tenant", "specDigest")}
            | {("attempt",): NUMBERS, ("spec", "spec", "corpus", 0, "textField"): FREE_TEXT},
        ),
        (
            "POST",
            "/runs/RUN/progress",
            progress,
            {
                ("stage",): TEXTS,
                ("step",): NUMBERS,
                ("total",): NUMBERS,
                ("metrics", "loss"): {name: NUMBERS[name] for name in ("NaN", "infinite")},
                ("metrics",): {name: {text: 1.0} for name, text in TEXTS.items()},
            },
        ),
        (
            "POST",
            "/runs/RUN/complete",
            result(),
            {
                ("baseDigest",): TEXTS,
                ("layersDigest",): TEXTS,
                ("split",): NUMBERS,
                ("labels", 0): FREE_TEXT,
                ("metrics", "accuracy"): {name: NUMBERS[name] for name in ("NaN", "infinite")},
                ("metrics",): {name: {text: 1.0} for name, text in TEXTS.items()},
                ("entries",): NUMBERS,
                ("coverage",): {name: NUMBERS[name] for name in ("NaN", "infinite")},
                ("trainingSeconds",): NUMBERS,
                ("artifacts", 0, "digest"): TEXTS,
                ("artifacts", 0, "uri"): FREE_TEXT,
                ("artifacts", 0, "bytes"): NUMBERS,
            },
        ),
        ("POST", "/runs/RUN/fail", {"reason": "Why", "message": "So."}, {("reason",): TEXTS}),
        (
            "PUT",
            "/runtimes/r1",
            registration(),
            {
                ("url",): FREE_TEXT,
                ("device",): TEXTS,
                ("incarnation",): TEXTS,
                ("capacityBytes",): NUMBERS,
            },
        ),
        (
            "POST",
            "/runtimes/r1/heartbeat",
            heartbeat(),
            {
                ("incarnation",): TEXTS,
                ("ready", 0, "adapter"): TEXTS,
                ("ready", 0, "version"): NUMBERS,
                ("gone", 0, "adapter"): TEXTS,
                ("gone", 0, "version"): NUMBERS,
                ("failed", 0, "adapter"): TEXTS,
                ("failed", 0, "version"): NUMBERS,
                ("resident", 0, "bytes"): NUMBERS,
                ("freeBytes",): NUMBERS,
                ("queueDepth",): NUMBERS,
            },
        ),
        (
            "POST",
            "/runtimes/r1/window-counts",
            window_counts(),
            {
                ("incarnation",): TEXTS,
                ("sequence",): NUMBERS,
                ("domains", 0, "domain"): TEXTS,
                ("domains", 0, "version"): NUMBERS,
                ("domains", 0, "layersDigest"): TEXTS,
                ("domains", 0, "lookups"): NUMBERS,
                ("domains", 0, "hits"): NUMBERS,
                ("domains", 0, "tenants", 0, "tenantId"): TEXTS,
                ("domains", 0, "tenants", 0, "keys"): TEXTS | ARRAYS,
                ("domains", 0, "tenants", 0, "counts"): TEXTS | ARRAYS,
            },
        ),
        ("POST", "/artifacts/RUN", {"manifest": "{}"}, {("manifest",): FREE_TEXT}),
    ]
    for method, path, body, fields in calls:
        for place, values in fields.items():
            where = ".".join(map(str, place))
            for name, value in values.items():
                yield pytest.param(method, path, body, place, value, id=f"{method} {path} {where} {name}")


@pytest.fixture
def run_id(cluster: Any) -> str:
    """A run in progress, and a runtime."""
    cluster.declare_domain("trade", uid="u")
    cluster.runtime()
    return str(cluster.internal("POST", "/runs", domain_run())["id"])


def send(client: Any, method: str, path: str, body: Any) -> Any:
    # As Python writes it: NaN as NaN, halves of pairs escaped, numbers of any length.
    text = _written(body)
    return client.request(method, f"/internal/v1{path}", content=text, headers=HEADERS)


def _written(body: Any) -> bytes:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(body).encode()
    finally:
        sys.set_int_max_str_digits(before)


def placed(body: dict[str, Any], place: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(body)
    inner: Any = changed
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    return changed


def test_values_that_cannot_be_stored_are_refused(client: Any, run_id: str) -> None:
    wrong = []
    for case in cases():
        method, path, body, place, value = case.values
        answer = send(client, method, path.replace("RUN", run_id), placed(body, place, value))
        if not 400 <= answer.status_code < 500:
            wrong.append((case.id, answer.status_code, answer.text[:200]))
        else:
            assert answer.json()["error"]["message"], case.id
    assert wrong == []
    assert send(client, "GET", f"/runs/{run_id}", None).json()["state"] in ("Pending", "Running")


def test_a_message_that_cannot_be_stored_is_escaped_and_cut(client: Any, run_id: str) -> None:
    failure = {"reason": "RowMalformed", "message": f"The label is {NUL} or {HALF}: " + "x" * 10_000}
    answer = send(client, "POST", f"/runs/{run_id}/fail", failure)
    assert answer.status_code == 200, answer.text
    message = send(client, "GET", f"/runs/{run_id}", None).json()["failure"]["message"]
    assert message.startswith("The label is fa\\x00ult or fa\\ud800ult: xxx")
    assert len(message) == 4000


def test_a_refused_value_is_reported_with_its_field(client: Any, run_id: str) -> None:
    answer = send(client, "POST", f"/runs/{run_id}/complete", placed(result(), ("labels", 0), NUL))
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("InvalidField", "labels.0")
    assert error["message"] == "labels.0 must contain no NUL character (U+0000)."


def manifest(**file: Any) -> dict[str, Any]:
    """The commit of an artifact with one file."""
    one = {"path": "a.json", "digest": "sha256:" + "0" * 64, "bytes": 1} | file
    body = {"kind": "Layers", "baseDigest": "sha256:b", "files": [one], "config": {}}
    return {"manifest": json.dumps(body)}


@pytest.mark.parametrize(
    "file",
    [{"bytes": -1000}, {"bytes": 10**30}, {"path": "a" * 5000 + ".json"}, {"digest": "x" * 5000}],
    ids=["negative", "too large", "a long path", "a long digest"],
)
def test_a_manifest_that_cannot_be_stored_is_refused(client: Any, run_id: str, file: dict[str, Any]) -> None:
    answer = send(client, "POST", f"/artifacts/{run_id}", manifest(**file))
    assert 400 <= answer.status_code < 500, answer.text


def test_a_file_with_an_impossible_name_is_404(client: Any, run_id: str) -> None:
    for path in ("a" * 5000 + ".json", "a%00.json"):
        answer = send(client, "GET", f"/artifacts/{run_id}/{'0' * 64}/{path}", None)
        assert answer.status_code == 404, answer.text


def test_values_that_only_the_database_refuses_are_422(client: Any) -> None:
    key = {"Authorization": "Bearer admin-key-of-the-tests"}
    assert client.get("/admin/v1/domains", params={"tenant": "a\0"}, headers=key).status_code < 500
