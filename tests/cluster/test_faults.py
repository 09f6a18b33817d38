"""Faults of a cluster: each shows in the status of affected resources, and everything else keeps working."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from installation import NAMESPACE, RELEASE, Installation
from kubectl import Kubectl, Object, condition, is_true, wait_for
from resources import Resources, has_reason
from tenants import Tenants

pytestmark = pytest.mark.timeout(600)

TENANT = "faults"
FAULT = pytest.mark.usefixtures("everything_else_works")
MANIFESTS = Path(__file__).with_name("manifests")
TRAINED_SECONDS = 300.0
TAKEOVER_SECONDS = 60.0
BACK_SECONDS = 180.0
SETTLED_SECONDS = 90.0
LOAD_SECONDS = 240.0
AWAY_SECONDS = 20
FEWEST_REQUESTS = 40
STEADY = [(TENANT, "steady")]


@pytest.fixture(scope="module", autouse=True)
def tenant(installation: Installation, tenants: Tenants, resources: Resources) -> str:
    """A tenant with a small Domain and two small TaskAdapters on it, all Ready."""
    stale = ("namespace", TENANT, f"{TENANT}-elsewhere", "--ignore-not-found", "--timeout=150s")
    installation.kubectl.run("delete", *stale, limit_s=170)
    installation.kubectl.run("apply", "-f", str(MANIFESTS / "faults.yaml"))
    tenants.ensure_key(TENANT)
    resources.follow_until_ready([TENANT], TRAINED_SECONDS)
    return TENANT


@pytest.fixture
def everything_else_works(tenant: str, resources: Resources, tenants: Tenants) -> Iterator[None]:
    """Check after each fault that the TaskAdapter ``steady`` is Ready and answers."""
    yield
    resources.ready("TaskAdapter", TENANT, "steady", BACK_SECONDS)
    assert tenants.status_of(TENANT, "steady") == 200


def test_as_many_runtimes_as_replicas_load_an_adapter(
    resources: Resources, installation: Installation
) -> None:
    assert len(installation.pods("runtime")) == 2
    _await_loaded(resources, installation)


@FAULT
def test_training_continues_when_the_operator_is_killed(
    kubectl: Kubectl, resources: Resources, tenants: Tenants
) -> None:
    kubectl.apply(_long_run("undisturbed"))
    _await_step(resources, "undisturbed", step=5)
    before = _jobs(kubectl, "undisturbed")
    leader = _leader(kubectl)
    kubectl.run("delete", "pod", leader, "-n", NAMESPACE, "--force", "--grace-period=0")
    wait_for(
        lambda: _leader(kubectl) not in ("", leader) and _leader(kubectl),
        TAKEOVER_SECONDS,
        "another replica leads",
        lambda: _leader(kubectl),
    )
    assert tenants.status_of(TENANT, "steady") == 200
    resources.ready("Domain", TENANT, "undisturbed", TRAINED_SECONDS)
    after = wait_for(
        lambda: [job for job in _jobs(kubectl, "undisturbed") if job["status"].get("succeeded")],
        SETTLED_SECONDS,
        "the Job has ended",
        lambda: _jobs(kubectl, "undisturbed"),
    )
    assert [job["metadata"]["uid"] for job in after] == [job["metadata"]["uid"] for job in before]
    assert not after[0]["status"].get("failed")


@FAULT
def test_a_killed_training_pod_resumes_from_its_checkpoint(kubectl: Kubectl, resources: Resources) -> None:
    kubectl.apply(_long_run("undisturbed"), _long_run("disturbed"))
    reached = _await_step(resources, "disturbed", step=60)
    pod = _training_pod(kubectl, "disturbed")
    kubectl.run("delete", "pod", pod, "-n", TENANT, "--force", "--grace-period=0")
    steps = []

    def trained(body: Object) -> bool:
        steps.append(_step(body))
        return is_true(body, "Ready")

    resources.reached("Domain", TENANT, "disturbed", trained, TRAINED_SECONDS, "Ready")
    assert all(step is None or step > 0 for step in steps), f"from {reached} on: {steps}"
    assert len(_jobs(kubectl, "disturbed")) == 1
    resources.ready("Domain", TENANT, "undisturbed", TRAINED_SECONDS)
    digests = {
        resources.get("Domain", TENANT, name)["status"]["artifact"]["digest"]
        for name in ("undisturbed", "disturbed")
    }
    assert len(digests) == 1, "a resumed training must give the same bytes"


@FAULT
def test_requests_go_to_other_runtimes_when_one_is_killed(
    kubectl: Kubectl, installation: Installation, resources: Resources, tenants: Tenants
) -> None:
    victim = installation.pods("runtime")[0]["metadata"]
    with tenants.load(STEADY, LOAD_SECONDS) as load:
        kubectl.run("delete", "pod", victim["name"], "-n", NAMESPACE, "--force", "--grace-period=0")
        installation.wait_until_ready("runtime", BACK_SECONDS)
        _await_loaded(resources, installation)
    assert victim["uid"] not in {pod["metadata"]["uid"] for pod in installation.pods("runtime")}
    assert set(load.outcomes) <= {"200", "503 with Retry-After"}, load.failures
    assert load.outcomes["503 with Retry-After"] <= load.outcomes["200"] // 20, load.failures
    assert load.outcomes["200"] > FEWEST_REQUESTS
    tenants.await_usage(TENANT)


@FAULT
def test_a_database_outage_loses_no_request_and_no_usage(
    kubectl: Kubectl, installation: Installation, resources: Resources, tenants: Tenants
) -> None:
    database = ("statefulset", f"{RELEASE}-postgresql", "-n", NAMESPACE)
    with tenants.load(STEADY, LOAD_SECONDS) as load:
        kubectl.run("scale", *database, "--replicas=0")
        wait_for(lambda: not installation.pods("postgresql"), SETTLED_SECONDS, "no database")
        _pass_time(kubectl, AWAY_SECONDS)
        kubectl.run("scale", *database, "--replicas=1")
        installation.wait_until_ready("postgresql", BACK_SECONDS)
    assert set(load.outcomes) == {"200"}, load.failures
    assert load.seconds > AWAY_SECONDS
    tenants.await_usage(TENANT)
    resources.ready("TaskAdapter", TENANT, "fragile", SETTLED_SECONDS)


@FAULT
def test_a_damaged_artifact_is_reported_and_only_its_adapter_stops(
    kubectl: Kubectl, installation: Installation, resources: Resources, tenants: Tenants
) -> None:
    uri = resources.get("TaskAdapter", TENANT, "fragile")["status"]["artifact"]["uri"]
    file = _in_store(kubectl, f"ls -S /artifacts/{uri}/*.safetensors | head -n 1")
    _in_store(kubectl, f"printf damaged | dd of={file} bs=1 seek=4000 conv=notrunc")
    # Running runtimes have good copies; a restarted one has none.
    names = [pod["metadata"]["name"] for pod in installation.pods("runtime")]
    kubectl.run("delete", "pod", *names, "-n", NAMESPACE, "--force", "--grace-period=0")
    installation.wait_until_ready("runtime", BACK_SECONDS)
    failed = resources.reached(
        "TaskAdapter",
        TENANT,
        "fragile",
        lambda body: condition(body, "Loaded").get("status") == "False",
        SETTLED_SECONDS,
        "its damage is reported",
    )
    assert condition(failed, "Loaded")["reason"] in ("DigestMismatch", "ArtifactDamaged")
    assert condition(failed, "Ready")["status"] == "False"
    row = kubectl.text("get", "ta", "fragile", "-n", TENANT, "-o", "wide").splitlines()[1]
    assert condition(failed, "Ready")["reason"] in row
    assert "hmi.dev/retrain" in resources.describe("TaskAdapter", TENANT, "fragile")
    resources.ready("TaskAdapter", TENANT, "steady", BACK_SECONDS)
    assert tenants.status_of(TENANT, "steady") == 200
    assert tenants.status_of(TENANT, "fragile") == 409, "a retry does not help; a new training does"
    assert "hmi.dev/retrain" in condition(failed, "Loaded")["message"]
    kubectl.run("annotate", "ta", "fragile", "-n", TENANT, "hmi.dev/retrain=damaged")
    resources.ready("TaskAdapter", TENANT, "fragile", TRAINED_SECONDS)
    assert resources.get("TaskAdapter", TENANT, "fragile")["status"]["artifact"]["uri"] == uri
    assert tenants.status_of(TENANT, "fragile") == 200


@FAULT
def test_a_job_that_always_fails_says_why(kubectl: Kubectl, resources: Resources) -> None:
    broken = _adapter("broken", train="configmap://rows/malformed.jsonl")
    kubectl.apply(broken)
    failed = resources.reached(
        *("TaskAdapter", TENANT, "broken"),
        lambda body: body.get("status", {}).get("phase") == "Failed",
        TRAINED_SECONDS,
        "Failed",
    )
    trained = condition(failed, "Trained")
    assert trained["status"] == "False"
    assert trained["reason"] == "RowMalformed"
    assert "malformed.jsonl, line 6" in trained["message"]
    shown = kubectl.text("get", "ta", "broken", "-n", TENANT, "-o", "wide").splitlines()[1]
    assert "Failed" in shown
    assert "RowMalformed" in shown
    described = resources.describe("TaskAdapter", TENANT, "broken")
    assert trained["message"] in " ".join(described.split())
    kubectl.apply(_adapter("broken", train="configmap://rows/train.jsonl"))
    resources.ready("TaskAdapter", TENANT, "broken", TRAINED_SECONDS)


@FAULT
def test_a_configmap_that_is_missing_is_named(kubectl: Kubectl, resources: Resources) -> None:
    kubectl.apply(_adapter("expecting", train="configmap://later/train.jsonl"))
    waiting = resources.reached(
        *("TaskAdapter", TENANT, "expecting"),
        has_reason("Trained", "VolumeNotMounted"),
        SETTLED_SECONDS,
        "VolumeNotMounted",
    )
    assert "later" in condition(waiting, "Trained")["message"]
    rows = kubectl.json("get", "configmap", "rows", "-n", TENANT)["data"]["train.jsonl"]
    metadata = {"name": "later", "namespace": TENANT}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"train.jsonl": rows}}
    )
    resources.ready("TaskAdapter", TENANT, "expecting", TRAINED_SECONDS)


def _spec(kind: str, **changes: Any) -> Object:
    """Return a valid resource with changes to its spec; None removes a field."""
    objects = list(yaml.safe_load_all((MANIFESTS / "faults.yaml").read_text()))
    body: Object = copy.deepcopy(next(one for one in objects if one["kind"] == kind))
    body["metadata"]["name"] = changes.pop("name", "wrong")
    body["spec"] |= changes
    body["spec"] = {field: value for field, value in body["spec"].items() if value is not None}
    return body


_ROWS = "configmap://rows/train.jsonl"
_CORPUS = [{"uri": "configmap://rows/corpus.txt"}]
BAD_SPECS = {
    "no base model": (_spec("Domain", baseModel=None), "spec.baseModel: Required value"),
    "no corpus": (_spec("Domain", corpus=[]), "spec.corpus"),
    "an unknown field": (_spec("Domain", corpse=1), 'unknown field "spec.corpse"'),
    "a split of none": (_spec("Domain", split=0), "spec.split"),
    "a wrong word": (_spec("Domain", plot={"onMiss": "Guess"}), '"Compute", "Backoff"'),
    "another base model": (
        _spec("Domain", name="small", baseModel={"uri": "wheel://another"}),
        "baseModel cannot change; delete the resource and apply it again",
    ),
    "its own parent": (_spec("Domain", name="wrong", parentRef={"name": "wrong"}), "their own ancestors"),
    "a path on a cluster": (
        _spec("Domain", corpus=[{"uri": "data/corpus.txt"}]),
        "spec.corpus[0].uri is data/corpus.txt, which a training Job cannot reach",
    ),
    "half an address": (_spec("Domain", corpus=[{"uri": "configmap://rows"}]), "configmap://NAME/KEY"),
    "no quantity": (
        _spec("Domain", resources={"limits": {"memory": "much"}}),
        "a quantity in quotes such as",
    ),
    "no task": (_spec("TaskAdapter", task=None), "spec.task: Required value"),
    "neither data nor source": (_spec("TaskAdapter", data=None), "give exactly one of data"),
    "data and source": (
        _spec("TaskAdapter", source={"uri": "s3://weights/lora"}),
        "give exactly one of data (to train here) and source",
    ),
    "a bottleneck to compress": (
        _spec("TaskAdapter", method={"type": "Bottleneck", "fit": "Compressed"}),
        "fit: Compressed is for LoRA only",
    ),
    "another domain": (
        _spec("TaskAdapter", name="steady", domainRef={"name": "elsewhere"}),
        "domainRef cannot change",
    ),
    "another task": (
        _spec("TaskAdapter", name="steady", task={"type": "TokenClassification"}),
        "task.type cannot change",
    ),
    "a gate that cannot be measured": (
        _spec("TaskAdapter", gate={"metric": "entity_f1", "minimum": 0.5}),
        "entity_f1",
    ),
    "a name that is too long": (_spec("TaskAdapter", name="a" * 64), "at most 63"),
}


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry run", "applied"])
@pytest.mark.parametrize("what", BAD_SPECS)
def test_an_invalid_spec_is_refused_with_what_to_do(what: str, dry_run: bool, kubectl: Kubectl) -> None:
    body, words = BAD_SPECS[what]
    assert words in kubectl.refusal(body, dry_run=dry_run)


def test_a_domain_that_is_not_shared_is_refused(kubectl: Kubectl) -> None:
    elsewhere = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "faults-elsewhere"}}
    kubectl.apply(elsewhere)
    body = _spec("TaskAdapter", domainRef={"name": "small", "namespace": TENANT})
    body["metadata"]["namespace"] = "faults-elsewhere"
    assert "not shared with namespace faults-elsewhere" in kubectl.refusal(body, dry_run=False)


@FAULT
def test_resources_can_be_deleted_without_runtimes(
    kubectl: Kubectl, installation: Installation, resources: Resources
) -> None:
    """With no runtime alive, a deleted resource still disappears."""
    pool = ("statefulset", f"{RELEASE}-runtime-cpu", "-n", NAMESPACE)
    kubectl.run("scale", *pool, "--replicas=0")
    wait_for(lambda: not installation.pods("runtime"), SETTLED_SECONDS, "no runtimes")
    kubectl.run("delete", "ta", "fragile", "-n", TENANT, "--timeout=60s", limit_s=80)
    waiting = resources.reached(
        *("TaskAdapter", TENANT, "steady"),
        lambda body: not is_true(body, "Ready"),
        SETTLED_SECONDS,
        "not Ready",
    )
    assert condition(waiting, "Ready")["status"] == "False"
    kubectl.run("scale", *pool, "--replicas=2")
    installation.wait_until_ready("runtime", BACK_SECONDS)


def _long_run(name: str) -> Object:
    """Return one of two Domains with the same spec, which train for a while."""
    objects = yaml.safe_load_all((MANIFESTS / "long-runs.yaml").read_text())
    found: Object = next(one for one in objects if one["metadata"]["name"] == name)
    return found


def _adapter(name: str, train: str) -> Object:
    return _spec("TaskAdapter", name=name, data={"train": {"uri": train}}, serving={"replicas": 1})


def _step(body: Object) -> int | None:
    """Return the step that ``status.progress`` names while it trains."""
    stage, _, steps = (body.get("status", {}).get("progress") or "").partition(" ")
    return int(steps.split("/")[0]) if stage == "training" else None


def _await_step(resources: Resources, name: str, step: int) -> int:
    """Wait until a Domain's training has reached a step; return its step."""
    found = resources.reached(
        "Domain", TENANT, name, lambda body: (_step(body) or 0) >= step, TRAINED_SECONDS, f"at step {step}"
    )
    reached = _step(found)
    assert reached is not None
    return reached


def _jobs(kubectl: Kubectl, name: str) -> list[Object]:
    return kubectl.items("jobs", "-n", TENANT, "-l", f"hmi.dev/name={name}")


def _training_pod(kubectl: Kubectl, name: str) -> str:
    pods = kubectl.items("pods", "-n", TENANT, "-l", f"hmi.dev/name={name}")
    running: list[str] = [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]
    return running[0]


def _leader(kubectl: Kubectl) -> str:
    """Return the pod of the leading operator."""
    lease = kubectl.json("get", "lease", f"{RELEASE}-operator", "-n", NAMESPACE)
    holder: str = lease["spec"].get("holderIdentity") or ""
    return holder


def _await_loaded(resources: Resources, installation: Installation) -> None:
    """Wait until every runtime has loaded the TaskAdapter ``steady``."""
    names = [pod["metadata"]["name"] for pod in installation.pods("runtime")]
    resources.reached(
        *("TaskAdapter", TENANT, "steady"),
        lambda body: all(name in _first_sentence(condition(body, "Loaded")) for name in names),
        SETTLED_SECONDS,
        f"held by {names}",
    )


def _first_sentence(condition: Object) -> str:
    """Return the first sentence of the condition ``Loaded``, which is about the current version."""
    return str(condition.get("message", "")).split(". ")[0]


def _in_store(kubectl: Kubectl, command: str) -> str:
    """Run a shell command in a pod that mounts the artifact store."""
    pod = f"deploy/{RELEASE}-control-plane"
    return kubectl.text("exec", "-n", NAMESPACE, pod, "--", "sh", "-c", command).strip()


def _pass_time(kubectl: Kubectl, seconds: int) -> None:
    """Sleep: the length of the outage is what is tested."""
    kubectl.run("exec", "-n", "hmi-clients", "client", "--", "sleep", str(seconds))
