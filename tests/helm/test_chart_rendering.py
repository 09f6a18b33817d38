"""The chart renders, its values are checked, and a real API server accepts the objects."""

import re
from pathlib import Path

import pytest
import yaml
from kube_server import KubeServer
from rendered_chart import CHART, NAMESPACE, ROOT, VALUES, Helm, RenderedChart

FOREIGN_GROUPS = ("cert-manager.io", "monitoring.coreos.com", "gateway.networking.k8s.io")
"""Types that an API server knows only where their own operators are installed."""


def test_lint_finds_nothing(helm: Helm) -> None:
    done = helm.run("lint", "--strict", str(CHART), "--values", str(VALUES / "production.yaml"))

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("operator.replica=3", "Additional property replica"),
        ("runtime.pools.gpu.devise=cuda", "Additional property devise"),
        ("runtime.pools.gpu.device=tpu", "runtime.pools.gpu.device"),
        ("runtime.defaults.budgets.disk=ten", "runtime.defaults.budgets.disk"),
        ("artifacts.s3.uri=bucket/prefix", "artifacts.s3.uri"),
        ("webhook.failurePolicy=Sometimes", "webhook.failurePolicy"),
        ("postgresql.enabled=false", "database.existingSecret"),
        ("postgresql.password=secret", "Additional property password"),
        ("watchNamespaces={Not A Name}", "watchNamespaces.0"),
    ],
)
def test_wrong_values_are_refused_by_name(helm: Helm, argument: str, complaint: str) -> None:
    done = helm.template("--set", argument)

    assert done.returncode != 0
    assert complaint in done.stderr


def test_a_real_api_server_accepts_every_object_without_a_warning(
    chart: RenderedChart, api_server: KubeServer
) -> None:
    for name in {NAMESPACE} | {
        manifest["metadata"].get("namespace", NAMESPACE) for manifest in chart.objects
    }:
        labels = {"pod-security.kubernetes.io/warn": "restricted"}
        api_server.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        )
    known = [item for item in chart.objects if not item["apiVersion"].startswith(FOREIGN_GROUPS)]

    said = api_server.kubectl(
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        "-",
        stdin=yaml.safe_dump_all(known),
        check=False,
    )

    lines = said.splitlines()
    assert [line for line in lines if not line.endswith("serverside-applied (server dry run)")] == []
    assert len(lines) == len(known)


def test_no_two_objects_have_the_same_name(chart: RenderedChart) -> None:
    keys = [
        (item["apiVersion"], item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"])
        for item in chart.objects
    ]

    assert len(keys) == len(set(keys))


def test_every_object_is_labelled(chart: RenderedChart) -> None:
    wanted = {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component", "part-of")}

    for item in chart.objects:
        assert wanted <= set(item["metadata"]["labels"]), item["metadata"]["name"]
    for component, pod in chart.pods():
        assert wanted <= set(pod["metadata"]["labels"]), component


@pytest.mark.parametrize("file", sorted((ROOT / "crds").glob("*.yaml")), ids=lambda file: str(file.stem))
def test_the_charts_crds_are_those_generated_from_the_code(file: Path) -> None:
    assert (CHART / "files" / "crds" / file.name).read_text() == file.read_text(), "run: make crds"


def test_crds_are_upgraded_with_the_release_and_kept_after_it(trial: RenderedChart) -> None:
    types = trial.of("CustomResourceDefinition")

    assert len(types) == len(list((ROOT / "crds").glob("*.yaml")))
    for item in types:
        source = yaml.safe_load((ROOT / "crds" / f"{item['metadata']['name']}.yaml").read_text())
        assert item["spec"] == source["spec"]
        assert item["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not (CHART / "crds").exists(), "Helm never upgrades what is there"


def test_the_charts_version_is_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert chart["version"] == chart["appVersion"] == version


def test_the_database_is_migrated_before_anything_serves(chart: RenderedChart) -> None:
    for component, command in [("control-plane", "migrate"), ("gateway", "wait-for-schema")]:
        (first,) = chart.pod(component)["spec"]["initContainers"]
        assert first["command"][-1] == command
        names = [entry["name"] for entry in first["env"]]
        assert [name for name in names if name.startswith("HMI_")] == ["HMI_DATABASE_URL"]
