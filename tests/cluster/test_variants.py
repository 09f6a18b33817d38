"""The chart with its artifacts on S3 and one watched namespace. Run it alone, on a cluster without HMI:

scripts/e2e tests/cluster/test_variants.py
"""

import shutil
from pathlib import Path

import pytest
import yaml
from installation import NAMESPACE, RELEASE, Installation
from kubectl import Kubectl, wait_for
from object_store import ObjectStore
from resources import Resources
from tenants import Tenants

WATCHED, UNWATCHED = "faults", "faults-elsewhere"
HERE = Path(__file__).parent
TRAINED_SECONDS = 400.0
GONE_SECONDS = 120.0


@pytest.fixture(scope="session")
def store(kubectl: Kubectl) -> ObjectStore:
    """The object store, not started yet."""
    program = shutil.which("versitygw")
    if program is None:
        pytest.skip("no S3 server: put versitygw on PATH (https://github.com/versity/versitygw/releases)")
    return ObjectStore(kubectl, Path(program))


@pytest.fixture(scope="session")
def installation(kubectl: Kubectl, store: ObjectStore) -> Installation:
    """The release with these values; its object store starts later, as after an outage."""
    release = Installation(kubectl, [HERE / "values.yaml", HERE / "values-variant.yaml"])
    if release.pods():
        pytest.fail(f"there is a release already: helm uninstall {RELEASE} -n {NAMESPACE}")
    for name in (NAMESPACE, WATCHED, UNWATCHED):
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    store.grant(NAMESPACE)
    release.install()
    store.start(release.pods("gateway")[0]["spec"]["containers"][0]["image"])
    return release


@pytest.fixture(scope="module")
def applied(kubectl: Kubectl, installation: Installation, resources: Resources) -> Resources:
    """A Domain in another namespace; in the watched one, a Domain with TaskAdapters, all Ready."""
    made = list(yaml.safe_load_all((HERE / "manifests" / "faults.yaml").read_text()))
    (domain,) = [one for one in made if one["kind"] == "Domain"]
    kubectl.apply({**domain, "metadata": {**domain["metadata"], "namespace": UNWATCHED}})
    kubectl.apply(*made)
    resources.follow_until_ready([WATCHED], TRAINED_SECONDS)
    return resources


@pytest.mark.timeout(TRAINED_SECONDS + 900)
def test_artifacts_are_in_the_object_store_and_are_served(
    applied: Resources, store: ObjectStore, tenants: Tenants
) -> None:
    for kind, name in (("Domain", "small"), ("TaskAdapter", "steady"), ("TaskAdapter", "fragile")):
        uri = applied.get(kind, WATCHED, name)["status"]["artifact"]["uri"]
        assert any(f"/hmi/e2e/{uri}/" in file for file in store.files()), (uri, store.files())
    for model in ("steady", "fragile"):
        assert tenants.status_of(WATCHED, model) == 200


def test_other_namespaces_are_left_alone(applied: Resources, kubectl: Kubectl) -> None:
    elsewhere = applied.get("Domain", UNWATCHED, "small")
    assert not elsewhere["metadata"].get("finalizers")
    assert not elsewhere.get("status")
    account = f"--as=system:serviceaccount:{NAMESPACE}:{RELEASE}-operator"
    for namespace, expected in ((WATCHED, "yes"), (UNWATCHED, "no")):
        said = kubectl.run("auth", "can-i", "create", "jobs", "-n", namespace, account, check=False).stdout
        assert said.strip() == expected, namespace


def test_deleted_artifacts_leave_the_object_store(
    applied: Resources, kubectl: Kubectl, store: ObjectStore
) -> None:
    both = ("domains.hmi.dev,taskadapters.hmi.dev", "--all", "-n", WATCHED, "--timeout=110s")
    kubectl.run("delete", *both, limit_s=120)
    wait_for(lambda: not store.files(), GONE_SECONDS, "an empty bucket", store.files)
