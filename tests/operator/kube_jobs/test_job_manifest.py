"""The Job and the work volume of a training run, as tables."""

import json
import re
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kube_models import as_json

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import InvalidInput
from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.refreshes import RefreshCause, RefreshSpec
from hmi_api.internal.runs import AdapterRunSpec, DomainRunSpec, RunState, RunView
from hmi_api.resources.common import Resources
from hmi_api.resources.domain import BaseModelRef, DomainSpec, OnMiss
from hmi_api.resources.task_adapter import TaskAdapterSpec
from hmi_api.security.address_policy import AddressPolicySettings
from hmi_operator.kubernetes.jobs import TrainerSettings, manifest
from hmi_operator.kubernetes.jobs.manifest import merged_resources
from hmi_operator.kubernetes.jobs.naming import labels_of

SETTINGS = TrainerSettings(
    trainer_image="hmi/runtime:1", control_plane_url="http://hmi-control-plane.hmi-system"
)
LAYERS = ArtifactRef(kind=ArtifactKind.LAYERS, uri="a/l", digest="sha256:l", bytes=1)
VERSION = DomainVersionView(
    version=1,
    spec_digest="d",
    base=BaseModelRef(uri="wheel://m"),
    base_digest="sha256:b",
    split=3,
    layers=LAYERS,
    tables=[],
    on_miss=OnMiss.COMPUTE,
    entries=1,
    coverage=1.0,
)


def run(name: str = "hotel", corpus: list[dict[str, Any]] | None = None, **changes: Any) -> RunView:
    spec = {"baseModel": {"uri": "wheel://m"}, "corpus": corpus or [{"uri": "s3://b/c.txt"}]}
    made = {
        "id": "0123456789abcdef",
        "uid": "11111111-2222",
        "spec_digest": "sha256:abc",
        "attempt": 0,
        "state": RunState.PENDING,
        "spec": DomainRunSpec(
            namespace="shop", name=name, spec=DomainSpec.model_validate(spec | changes.pop("spec", {}))
        ),
    }
    return RunView(**(made | changes))


def adapter_run(**spec: Any) -> RunView:
    wanted = {"domainRef": {"name": "hotel"}, "task": {"type": "SequenceClassification"}} | spec
    return run(
        spec_digest="sha256:def",
        id="ad",
    ).model_copy(
        update={
            "spec": AdapterRunSpec(
                namespace="shop", name="topic", spec=TaskAdapterSpec.model_validate(wanted), domain=VERSION
            )
        }
    )


def build_training_job(made: RunView, settings: TrainerSettings, *, crashes: int = 0) -> dict[str, Any]:
    """Return the Job as the client sends it."""
    found: dict[str, Any] = as_json(manifest.build_training_job(made, settings, crashes=crashes))
    return found


def build_checkpoint_claim(made: RunView, settings: TrainerSettings) -> dict[str, Any] | None:
    """Return the claim as the client sends it."""
    found: dict[str, Any] | None = as_json(manifest.build_checkpoint_claim(made, settings))
    return found


def pod(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["template"]["spec"]
    return found


def container(job: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod(job)["containers"]
    return dict(found)


def test_the_job_is_plain_json_and_the_same_every_time() -> None:
    assert json.loads(json.dumps(build_training_job(run(), SETTINGS))) == build_training_job(run(), SETTINGS)


@given(st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True))
def test_names_are_short_and_fit_for_dns(name: str) -> None:
    made = build_training_job(run(name), SETTINGS)["metadata"]["name"]
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", made)


@pytest.mark.parametrize(
    "change",
    [{"uid": "other"}, {"spec_digest": "sha256:other"}, {"attempt": 1}],
    ids=["an object applied again", "another spec", "another attempt"],
)
def test_runs_of_other_objects_specs_and_attempts_have_other_names(change: dict[str, Any]) -> None:
    first, other = (build_training_job(made, SETTINGS)["metadata"]["name"] for made in (run(), run(**change)))
    assert first != other


def test_the_job_has_the_installations_labels() -> None:
    settings = SETTINGS.model_copy(update={"trainer_instance": "press"})
    claim = build_checkpoint_claim(run(), settings)
    assert claim is not None
    job = build_training_job(run(), settings)
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"], claim["metadata"]):
        assert metadata["labels"]["app.kubernetes.io/instance"] == "press"


@pytest.mark.parametrize(
    ("made", "kind", "name"),
    [(run(), "Domain", "hotel"), (adapter_run(source={"uri": "s3://b/a"}), "TaskAdapter", "topic")],
)
def test_the_job_is_owned_by_the_resource(made: RunView, kind: str, name: str) -> None:
    claim = build_checkpoint_claim(made, SETTINGS)
    assert claim is not None
    job = build_training_job(made, SETTINGS)
    for metadata in (job["metadata"], claim["metadata"]):
        assert metadata["namespace"] == "shop"
        assert metadata["ownerReferences"] == [
            {
                "apiVersion": "hmi.dev/v1alpha1",
                "kind": kind,
                "name": name,
                "uid": made.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
        assert metadata["labels"]["hmi.dev/run"] == made.id
        assert metadata["labels"]["hmi.dev/kind"] == kind
    assert job["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == "trainer"
    assert container(job)["command"] == ["python", "-m", "hmi_runtime.training", made.spec.kind]


def test_the_pod_meets_the_restricted_pod_security_standard() -> None:
    job = build_training_job(run(), SETTINGS)
    assert pod(job)["securityContext"]["runAsNonRoot"] is True
    assert pod(job)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(job)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_pods_only_token_is_for_the_control_plane() -> None:
    job = build_training_job(run(), SETTINGS)
    assert pod(job)["automountServiceAccountToken"] is False
    assert pod(job)["serviceAccountName"] == "default"
    (token,) = [volume for volume in pod(job)["volumes"] if volume["name"] == "token"]
    (source,) = token["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "hmi-control-plane"
    environment = {entry["name"]: entry.get("value") for entry in container(job)["env"]}
    assert environment["HMI_INTERNAL_TOKEN_FILE"] == "/var/run/secrets/hmi/token"
    assert environment["HMI_CONTROL_PLANE_URL"] == SETTINGS.control_plane_url
    assert environment["HMI_RUN_ID"] == run().id
    assert environment["HMI_MOUNTS"] == "/mnt/hmi"
    assert "HMI_ARTIFACTS" not in environment or "://" in str(environment["HMI_ARTIFACTS"])


def test_threads_are_those_of_the_container_and_not_of_the_node() -> None:
    (threads,) = [
        entry
        for entry in container(build_training_job(run(), SETTINGS))["env"]
        if entry["name"] == "HMI_TRAINING_THREADS"
    ]
    assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"


def test_crashes_are_counted_over_jobs_and_disruptions_are_not() -> None:
    spec = build_training_job(run(), SETTINGS)["spec"]
    assert spec["backoffLimit"] == 3
    assert build_training_job(run(), SETTINGS, crashes=3)["spec"]["backoffLimit"] == 0
    rules = spec["podFailurePolicy"]["rules"]
    assert rules[0] == {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    by_code = {code: rule["action"] for rule in rules[1:] for code in rule["onExitCodes"]["values"]}
    assert by_code == {75: "Ignore", 1: "FailJob", 2: "FailJob"}
    assert spec["podReplacementPolicy"] == "Failed"


def test_the_work_folder_is_on_a_claim_or_on_the_pods_disk() -> None:
    job = build_training_job(run(), SETTINGS)
    assert pod(job)["volumes"][0]["persistentVolumeClaim"]["claimName"] == job["metadata"]["name"]
    without = SETTINGS.model_copy(update={"trainer_checkpoint_size": ""})
    assert build_checkpoint_claim(run(), without) is None
    assert pod(build_training_job(run(), without))["volumes"][0] == {"name": "work", "emptyDir": {}}
    classed = SETTINGS.model_copy(update={"trainer_checkpoint_storage_class": "fast"})
    claim = build_checkpoint_claim(run(), classed)
    assert claim is not None
    assert claim["spec"]["storageClassName"] == "fast"


def test_config_maps_and_claims_are_mounted_once_and_read_only() -> None:
    corpus = [
        {"uri": "configmap://texts/a.txt"},
        {"uri": "configmap://texts/b.txt"},
        {"uri": "pvc://corpora/hotel/2026"},
        {"uri": "s3://bucket/c.txt"},
    ]
    job = build_training_job(run(corpus=corpus), SETTINGS)
    mounts = {
        mount["mountPath"]: mount for mount in container(job)["volumeMounts"] if "/mnt/" in mount["mountPath"]
    }
    assert set(mounts) == {"/mnt/hmi/configmaps/texts", "/mnt/hmi/claims/corpora"}
    assert all(mount["readOnly"] for mount in mounts.values())
    volumes = {volume["name"]: volume for volume in pod(job)["volumes"]}
    assert volumes[mounts["/mnt/hmi/configmaps/texts"]["name"]]["configMap"] == {"name": "texts"}
    claim = volumes[mounts["/mnt/hmi/claims/corpora"]["name"]]["persistentVolumeClaim"]
    assert claim == {"claimName": "corpora", "readOnly": True}


@pytest.mark.parametrize(
    "uri", ["configmap://", "configmap://Upper/a", "pvc://claim/../etc", "configmap://a/b/c"]
)
def test_addresses_without_a_key_or_claim_are_refused(uri: str) -> None:
    with pytest.raises(InvalidInput, match="correct it") as raised:
        build_training_job(run(corpus=[{"uri": uri}]), SETTINGS)
    assert raised.value.reason == "AddressMalformed"


def test_secrets_reach_the_container_once_each_and_are_never_read() -> None:
    data = {
        "train": {"uri": "s3://b/t", "secretRef": {"name": "keys"}},
        "evaluation": {"uri": "s3://b/e", "secretRef": {"name": "keys"}},
        "unlabelled": {"uri": "s3://c/u", "secretRef": {"name": "others"}},
    }
    made = container(build_training_job(adapter_run(data=data, training={"teacher": {}}), SETTINGS))
    assert made["envFrom"] == [{"secretRef": {"name": "keys"}}, {"secretRef": {"name": "others"}}]


@pytest.mark.parametrize(
    ("own", "requests", "limits"),
    [
        ({}, {"cpu": "1"}, {"cpu": "2", "memory": "4Gi"}),
        ({"requests": {"cpu": "8"}}, {"cpu": "8"}, {"memory": "4Gi"}),
        ({"limits": {"memory": "1Gi"}}, {"cpu": "1"}, {"cpu": "2", "memory": "1Gi"}),
        (
            {"limits": {"nvidia.com/gpu": "1"}},
            {"cpu": "1", "nvidia.com/gpu": "1"},
            {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1"},
        ),
        (
            {"requests": {"nvidia.com/gpu": "2"}},
            {"cpu": "1", "nvidia.com/gpu": "2"},
            {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "2"},
        ),
    ],
    ids=["defaults", "a request above the default limit", "a lower limit", "a GPU", "a GPU as a request"],
)
def test_the_resources_own_requests_and_limits_precede_defaults(
    own: dict[str, Any], requests: dict[str, str], limits: dict[str, str]
) -> None:
    defaults = Resources(requests={"cpu": "1"}, limits={"cpu": "2", "memory": "4Gi"})
    assert merged_resources(Resources(**own), defaults) == {"requests": requests, "limits": limits}


def test_the_installation_sets_selectors_tolerations_and_pull_secrets() -> None:
    settings = SETTINGS.model_copy(
        update={
            "trainer_node_selector": {"pool": "train"},
            "trainer_tolerations": ({"key": "gpu", "operator": "Exists"},),
            "trainer_image_pull_secrets": ("registry",),
        }
    )
    made = pod(build_training_job(run(), settings))
    assert made["nodeSelector"] == {"pool": "train"}
    assert made["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert made["imagePullSecrets"] == [{"name": "registry"}]
    assert not {"nodeSelector", "tolerations", "imagePullSecrets"} & set(
        pod(build_training_job(run(), SETTINGS))
    )


def test_the_installations_additions_are_in_the_pod() -> None:
    affinity: dict[str, Any] = {"nodeAffinity": {}}
    settings = SETTINGS.model_copy(
        update={
            "trainer_affinity": affinity,
            "trainer_priority_class_name": "batch",
            "trainer_runtime_class_name": "gvisor",
            "trainer_pod_labels": {"example.com/kind": "training", "hmi.dev/name": "another"},
            "trainer_pod_annotations": {"example.com/scrape": "false"},
            "trainer_extra_env": (
                {"name": "EXTRA", "value": "more"},
                {"name": "HMI_RUN_ID", "value": "another"},
            ),
            "trainer_extra_volumes": ({"name": "models", "emptyDir": {}},),
            "trainer_extra_volume_mounts": ({"name": "models", "mountPath": "/models"},),
            "ca_certificates": "-----BEGIN CERTIFICATE-----",
        }
    )
    made = run()

    job = build_training_job(made, settings)

    metadata = job["spec"]["template"]["metadata"]
    environment = {entry["name"]: entry.get("value") for entry in container(job)["env"]}
    assert pod(job)["affinity"] == affinity
    assert (pod(job)["priorityClassName"], pod(job)["runtimeClassName"]) == ("batch", "gvisor")
    assert metadata["labels"] == {"example.com/kind": "training"} | labels_of(made, settings.trainer_instance)
    assert metadata["annotations"] == {"example.com/scrape": "false"}
    assert environment["EXTRA"] == "more"
    assert environment["HMI_RUN_ID"] == made.id, "HMI's own variables win"
    assert environment["HMI_CA_CERTIFICATES"] == "-----BEGIN CERTIFICATE-----"
    assert {"name": "models", "emptyDir": {}} in pod(job)["volumes"]
    assert {"name": "models", "mountPath": "/models"} in container(job)["volumeMounts"]


def test_jobs_know_the_largest_adapters_that_runtimes_serve() -> None:
    limits = {"max_rank": 64, "max_bottleneck": 0, "max_labels": 1000}
    job = build_training_job(run(), SETTINGS.model_copy(update=limits))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert (
        variables.items()
        >= {"HMI_MAX_RANK": "64", "HMI_MAX_BOTTLENECK": "0", "HMI_MAX_LABELS": "1000"}.items()
    )


def test_a_secret_of_the_tenants_changes_neither_proxies_nor_the_policy_of_addresses() -> None:
    settings = SETTINGS.model_copy(
        update={
            "trainer_https_proxy": "http://proxy.corp:3128",
            "trainer_no_proxy": ".corp",
            "data_allowed_hosts": ("minio.storage.svc",),
            "data_allowed_networks": (ip_network("10.7.0.0/16"),),
        }
    )
    secret = [{"uri": "https://example.org/a.txt", "secretRef": {"name": "s"}}]
    made = container(build_training_job(run(corpus=secret), settings))

    assert made["envFrom"] == [{"secretRef": {"name": "s"}}]  # `env` takes precedence over it
    environment = {entry["name"]: entry.get("value") for entry in made["env"]}
    for name in ("http_proxy", "all_proxy"):
        assert environment[name] == environment[name.upper()] == ""
    assert environment["https_proxy"] == environment["HTTPS_PROXY"] == "http://proxy.corp:3128"
    assert environment["no_proxy"] == environment["NO_PROXY"] == ".corp"
    assert environment["AWS_EC2_METADATA_DISABLED"] == "true"
    found = AddressPolicySettings.model_validate(
        {name.removeprefix("HMI_").lower(): value for name, value in _parsed(environment).items()}
    )
    policy = found.address_policy()
    assert not policy.own_machine
    assert policy.allowed_hosts == ("minio.storage.svc",)
    assert policy.allowed_networks == settings.data_allowed_networks


def test_the_installations_own_variables_may_name_another_proxy() -> None:
    settings = SETTINGS.model_copy(
        update={"trainer_extra_env": ({"name": "HTTPS_PROXY", "value": "http://other:1"},)}
    )

    environment = container(build_training_job(run(), settings))["env"]

    assert [entry["value"] for entry in environment if entry["name"] == "HTTPS_PROXY"] == ["http://other:1"]


def _parsed(environment: dict[str, Any]) -> dict[str, Any]:
    return {
        name: json.loads(value) if value.startswith("[") else value
        for name, value in environment.items()
        if name.startswith("HMI_DATA_")
    }


def test_a_refresh_has_a_name_of_its_own_and_needs_no_data() -> None:
    made = run(corpus=[{"uri": "configmap://rows/a.txt", "secretRef": {"name": "keys"}}])
    refresh = RefreshSpec(current=VERSION, cause=RefreshCause.SCHEDULE)
    spec = made.spec.model_copy(update={"refresh": refresh})
    job = build_training_job(made.model_copy(update={"spec": spec}), SETTINGS)
    assert job["metadata"]["name"].startswith("refresh-hotel-")
    assert container(job)["command"][-1] == "domain"
    assert not container(job).get("envFrom")
    assert not [one for one in pod(job)["volumes"] if "configMap" in one]
