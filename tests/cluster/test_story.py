"""The story of one installation, in the order of this file: from `helm install` to `helm uninstall` and back.

Each test needs the state that the tests before it leave.
"""

import json
import re
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import pytest
from administration import Administration
from embedded_answers import EmbeddedRuntime, answer
from installation import CHECKOUT, NAMESPACE, RELEASE, Installation, is_ready
from kubectl import Kubectl, is_true, key_of, wait_for
from resources import BOTH, Resources
from tenants import Tenants

pytestmark = pytest.mark.timeout(600)

TENANTS = ("seaview", "spokes", "velotel")
NAMESPACES = ("commons", *TENANTS)
MODELS = [
    ("seaview", "guest-topic"),
    ("seaview", "guest-urgency"),
    ("seaview", "stay-details"),
    ("spokes", "repair-topic"),
    ("spokes", "safe-to-ride"),
    ("velotel", "mail-desk"),
]
TRAINING_SECONDS = 1500.0
AGAIN_SECONDS = 240.0
ROLLED_SECONDS = 400.0
SETTLED_SECONDS = 60.0
ROWS_A_MODEL = 6
TOLERANCE = 1e-4
CENT = Decimal("0.01")
PRICES = {"requests": "0.0125", "rows": "0.003", "prompt_tokens": "0.00015"}


@pytest.fixture(scope="module")
def examples(
    installation: Installation, tenants: Tenants, administration: Administration, resources: Resources
) -> Resources:
    """The examples, applied by kubectl and Ready; their tenants have keys, and there are prices."""
    installation.kubectl.run("apply", "-k", "examples/demo")
    for meter, price in PRICES.items():
        put = administration.call("PUT", "/admin/v1/prices", {"meter": meter, "unitPrice": price})
        assert put.status == 200, put.text
    for tenant in TENANTS:
        tenants.ensure_key(tenant)
    resources.follow_until_ready(NAMESPACES, TRAINING_SECONDS)
    return resources


def test_the_chart_installs_and_its_pods_become_ready(installation: Installation) -> None:
    pods = [pod for pod in installation.pods() if "deletionTimestamp" not in pod["metadata"]]
    assert pods
    assert all(is_ready(pod) for pod in pods), [pod["metadata"]["name"] for pod in pods]
    notes = installation.helm("get", "notes", RELEASE).stdout
    assert "kubectl apply -k examples/demo" in notes
    assert f"helm test {RELEASE} -n {NAMESPACE}" in notes


def test_helm_test_passes(installation: Installation) -> None:
    done = installation.helm("test", RELEASE, "--logs", "--timeout", "3m", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(TRAINING_SECONDS + 300)
def test_declared_resources_become_ready(examples: Resources) -> None:
    found = examples.all(NAMESPACES)
    assert {one["metadata"]["name"] for one in found} >= {name for _, name in MODELS}
    for one in found:
        status = one["status"]
        assert is_true(one, "Ready"), key_of(one)
        assert status["phase"] == "Ready"
        assert status["version"] >= 1
        assert status["artifact"]["digest"].startswith("sha256:")
        messages = {each["type"]: each["message"] for each in status["conditions"]}
        for type_ in ("Published", "Ready"):
            assert f"Version {status['version']} " in messages[type_], key_of(one)
        data_read = messages["CorpusReady" if one["kind"] == "Domain" else "Trained"]
        assert re.search(r"\d+ rows of \d+ files?", data_read), key_of(one)
        said = {each["type"]: each["status"] for each in status["conditions"]}
        assert (said.pop("Reconciling"), said.pop("Stalled")) == ("False", "False"), key_of(one)
        assert set(said.values()) == {"True"}, key_of(one)


def test_kubectl_get_shows_the_state(examples: Resources, kubectl: Kubectl) -> None:
    shown = kubectl.text("get", "dom,ta", "-A")
    domains, adapters = (_rows(part) for part in shown.strip("\n").split("\n\n"))
    assert {"NAMESPACE", "NAME", "PHASE", "READY", "HIT RATE", "VERSION", "AGE"} <= set(domains[0])
    assert {"NAMESPACE", "NAME", "PHASE", "READY", "DOMAIN", "VERSION", "AGE"} <= set(adapters[0])
    for row in (*domains, *adapters):
        if row["NAMESPACE"] in NAMESPACES:
            assert row["READY"] == "True", shown
            empty = {column for column, value in row.items() if not value}
            assert empty <= {"PARENT", "PROGRESS", "HIT RATE"}, shown
    wide = kubectl.text("get", "ta", "-n", "seaview", "-o", "wide")
    assert [row["REASON"] for row in _rows(wide)] == ["Serving"] * 3, wide
    assert "guest-topic" in kubectl.text("get", "hmi", "-n", "seaview")
    assert "windows" in kubectl.text("explain", "domain.spec.plot").lower()


def test_there_are_events_with_reasons_and_messages(examples: Resources, kubectl: Kubectl) -> None:
    described = examples.describe("TaskAdapter", "seaview", "guest-topic")
    assert "Events:" in described
    for kind, namespace, name in (("Domain", "commons", "desk"), ("TaskAdapter", "seaview", "guest-topic")):
        selector = f"involvedObject.kind={kind},involvedObject.name={name}"
        found = kubectl.items("events", "-n", namespace, "--field-selector", selector)
        assert found, f"no events of {kind} {namespace}/{name}"
        assert all(event["reason"] and event["message"] for event in found)
        assert "Ready" in {event["reason"] for event in found} or any(
            "serves" in event["message"] for event in found
        ), [event["message"] for event in found]


def test_jobs_ran_in_the_tenants_namespaces_without_rights(examples: Resources, kubectl: Kubectl) -> None:
    jobs = kubectl.items("jobs", "-A", "-l", "app.kubernetes.io/component=trainer")
    assert {job["metadata"]["namespace"] for job in jobs} >= set(NAMESPACES)
    for job in jobs:
        owner = job["metadata"]["ownerReferences"][0]
        assert owner["kind"] in ("Domain", "TaskAdapter")
        pod = job["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    system = kubectl.items("jobs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=trainer")
    assert not system


def test_a_mixed_batch_gets_the_same_answers_as_on_one_machine(
    examples: Resources, tenants: Tenants, administration: Administration, tmp_path: Path
) -> None:
    single = [(tenant, model, [text]) for tenant, model in MODELS for text in _texts(model)]
    answers = tenants.classify(single)
    embedded = EmbeddedRuntime(tenants.kubectl, administration, tmp_path)
    with embedded.serving(MODELS) as loader:
        for (tenant, model, texts), given in zip(single, answers, strict=True):
            expected = answer(loader, f"{tenant}/{model}", texts[0])
            found = given["data"][0]
            if expected.tokens:
                assert [one["label"] for one in found["tokens"]] == [one.label for one in expected.tokens]
                scores = [one["score"] for one in found["tokens"]]
                assert scores == pytest.approx([one.score for one in expected.tokens], abs=TOLERANCE)
            else:
                assert given["labels"] == expected.labels
                assert found["probs"] == pytest.approx(expected.scores, abs=TOLERANCE)
            assert given["usage"]["prompt_tokens"] == expected.prompt_tokens


def test_usage_and_bills_count_every_request_once(
    examples: Resources, tenants: Tenants, administration: Administration
) -> None:
    tenants.classify([(tenant, model, _texts(model)) for tenant, model in MODELS])
    for tenant in TENANTS:
        tenants.await_usage(tenant)
        bill = administration.read(f"/admin/v1/bills/{tenant}")
        _check_bill(bill)
        for meter in PRICES:
            billed = sum(line["quantity"] for line in bill["lines"] if line["meter"] == meter)
            assert billed == tenants.used(tenant, meter).total()


def test_a_wrong_key_and_another_tenants_model_are_refused(examples: Resources, tenants: Tenants) -> None:
    body = {"model": "guest-topic", "input": ["hello"]}
    wrong = {"method": "POST", "path": "/classify", "key": "hmi_0123456789abcdef_" + "0" * 64, "body": body}
    none = wrong | {"key": None}
    others = wrong | {"key": tenants.ensure_key("spokes")}
    unknown = others | {"body": body | {"model": "nothing-of-the-kind"}}
    answers = tenants.send(wrong, none, others, unknown)
    assert [one.status for one in answers] == [401, 401, 404, 404]
    said = [answers[2].body["error"]["message"], answers[3].body["error"]["message"]]
    assert said[0].replace("guest-topic", "X") == said[1].replace("nothing-of-the-kind", "X")
    models = tenants.send({"method": "GET", "path": "/v1/models", "key": tenants.ensure_key("spokes")})[0]
    assert {one["id"] for one in models.body["data"]} == {"repair-topic", "safe-to-ride"}


@pytest.mark.timeout(ROLLED_SECONDS + 200)
def test_an_upgrade_under_load_loses_no_request(
    examples: Resources, installation: Installation, tenants: Tenants
) -> None:
    before = {pod["metadata"]["uid"] for part in ("gateway", "runtime") for pod in installation.pods(part)}
    with tenants.load(MODELS, ROLLED_SECONDS + 60) as load:
        installation.upgrade("gateway.drainSeconds=29", "runtime.defaults.drainSeconds=11")
        installation.wait_until_ready(limit_s=ROLLED_SECONDS)
    after = {pod["metadata"]["uid"] for part in ("gateway", "runtime") for pod in installation.pods(part)}
    assert not before & after, "not every pod was replaced"
    assert set(load.outcomes) == {"200"}, load.failures
    assert load.outcomes["200"] > 100
    for tenant in TENANTS:
        tenants.await_usage(tenant)


def test_a_deleted_task_adapter_is_unloaded_and_its_artifact_deleted(
    examples: Resources, tenants: Tenants, administration: Administration, kubectl: Kubectl
) -> None:
    uri = examples.get("TaskAdapter", "spokes", "safe-to-ride")["status"]["artifact"]["uri"]
    kubectl.run("delete", "ta", "safe-to-ride", "-n", "spokes", "--timeout=60s", limit_s=80)
    assert kubectl.find("ta", "safe-to-ride", "-n", "spokes") is None
    wait_for(lambda: tenants.status_of("spokes", "safe-to-ride") == 404, SETTLED_SECONDS, "404")
    listed = administration.read("/admin/v1/adapters?tenant=spokes&limit=500")
    assert "safe-to-ride" not in json.dumps(listed)
    assert administration.as_operator("/internal/v1/adapters/spokes/safe-to-ride").status == 404
    stored = ("exec", "-n", NAMESPACE, f"deploy/{RELEASE}-control-plane", "--", "test", "-e")
    wait_for(
        lambda: kubectl.run(*stored, f"/artifacts/{uri}", check=False).returncode == 1,
        SETTLED_SECONDS,
        f"{uri} is deleted",
    )
    left = kubectl.items("jobs,persistentvolumeclaims", "-n", "spokes", "-l", "hmi.dev/name=safe-to-ride")
    assert all("deletionTimestamp" in one["metadata"] for one in left)
    assert tenants.status_of("spokes", "repair-topic") == 200


def test_uninstalling_keeps_all_resources_and_lets_them_be_deleted(
    examples: Resources, installation: Installation, kubectl: Kubectl
) -> None:
    declared = {key_of(one): one["spec"] for one in examples.all(NAMESPACES)}
    installation.uninstall()
    assert {key_of(one): one["spec"] for one in examples.all(NAMESPACES)} == declared
    assert len(kubectl.items("crds", "-l", "app.kubernetes.io/part-of=hmi")) == 2
    kept = kubectl.items("persistentvolumeclaims", "-n", NAMESPACE)
    assert {"hmi-artifacts"} <= {claim["metadata"]["name"] for claim in kept}
    # Finalizers are gone: objects can be deleted without an operator.
    kubectl.run("delete", "ta", "mail-desk", "-n", "velotel", "--timeout=30s")


def test_a_new_installation_adopts_the_existing_resources(
    examples: Resources, installation: Installation, tenants: Tenants, administration: Administration
) -> None:
    versions = {key_of(one): one["status"]["artifact"] for one in examples.all(NAMESPACES)}
    installation.install()
    examples.follow_until_ready(NAMESPACES, AGAIN_SECONDS)
    assert {key_of(one): one["status"]["artifact"] for one in examples.all(NAMESPACES)} == versions
    left = [pair for pair in MODELS if pair[1] not in ("safe-to-ride", "mail-desk")]
    tenants.classify([(tenant, model, _texts(model)) for tenant, model in left])
    for tenant in TENANTS:
        tenants.await_usage(tenant)
    assert installation.kubectl.text("get", BOTH, "-A").count("True") == len(versions)
    # The catalog still has what was deleted while no operator ran.
    deleted = administration.call("DELETE", "/admin/v1/adapters/velotel/mail-desk")
    assert deleted.status == 204, deleted.text
    wait_for(lambda: tenants.status_of("velotel", "mail-desk") == 404, SETTLED_SECONDS, "404")


def _texts(model: str) -> list[str]:
    """Return held-out messages of a task."""
    lines = (CHECKOUT / "examples" / "demo" / "data" / model / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:ROWS_A_MODEL]]
    return [row["text"] if "text" in row else " ".join(row["tokens"]) for row in rows]


def _rows(table: str) -> list[dict[str, str]]:
    """Return a table of kubectl as one dict per line; a cell that is empty, or <none>, is ""."""
    head, *lines = table.strip("\n").splitlines()
    columns = list(re.finditer(r"\S+(?: \S+)*", head))  # one space is part of a name: HIT RATE
    starts = [column.start() for column in columns]
    ends = [*starts[1:], None]
    names = [column.group() for column in columns]
    cells = [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines]
    return [
        {column: "" if cell == "<none>" else cell for column, cell in zip(names, row, strict=True)}
        for row in cells
    ]


def _check_bill(bill: dict[str, Any]) -> None:
    """Check that each line is quantity times price, rounded once, and that the total is their sum."""
    for line in bill["lines"]:
        if not line["note"]:
            exact = line["quantity"] * Decimal(line["unitPrice"])
            assert Decimal(line["amount"]) == exact.quantize(CENT, ROUND_HALF_EVEN), line
    assert Decimal(bill["total"]) == sum(Decimal(line["amount"]) for line in bill["lines"]), bill
    assert Decimal(bill["total"]) > 0
