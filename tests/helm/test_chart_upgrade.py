"""Changes that `helm upgrade` must refuse before it changes anything, on a real API server."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from kube_server import KubeServer
from rendered_chart import CHART, Helm

NAMESPACE = "kept-system"


class Release(NamedTuple):
    """A release of the chart on a real API server."""

    helm: Helm
    server: KubeServer

    def say(self, command: str, *settings: str) -> tuple[int, str]:
        """Install or upgrade with ``--set`` settings; return Helm's exit code and error output."""
        flags = [flag for one in ("crds.install=false", *settings) for flag in ("--set", one)]
        where = ("--kubeconfig", str(self.server.kubeconfig), "--namespace", NAMESPACE)
        done = self.helm.run(command, "kept", str(CHART), *where, "--create-namespace", *flags)
        return done.returncode, done.stderr

    def replicas(self) -> str:
        """Return the number of gateway replicas of the release."""
        wanted = ("-o", "jsonpath={.spec.replicas}")
        return self.server.kubectl("get", "statefulset", "kept-hmi-gateway", "-n", NAMESPACE, *wanted)


@pytest.fixture(scope="module")
def release(helm: Helm, api_server: KubeServer) -> Iterator[Release]:
    """The chart with its defaults."""
    made = Release(helm, api_server)
    code, complaint = made.say("install")
    assert code == 0, complaint
    yield made
    where = ("--kubeconfig", str(api_server.kubeconfig), "--namespace", NAMESPACE)
    helm.run("uninstall", "kept", "--no-hooks", *where)


@pytest.mark.parametrize(
    ("setting", "statefulset", "was"),
    [
        ("gateway.spool.size=2Gi", "kept-hmi-gateway", "volumes of 1Gi"),
        ("gateway.spool.size=1.5Gi", "kept-hmi-gateway", "volumes of 1Gi"),
        ("postgresql.size=20Gi", "kept-hmi-postgresql", "volumes of 8Gi"),
        ("postgresql.size=500G", "kept-hmi-postgresql", "volumes of 8Gi"),
        ("runtime.pools.cpu.cache.persistent=true", "kept-hmi-runtime-cpu", "no volumes"),
    ],
)
def test_changed_volumes_are_refused_before_anything_changes(
    release: Release, setting: str, statefulset: str, was: str
) -> None:
    before = release.replicas()

    code, complaint = release.say("upgrade", setting, f"gateway.replicas={int(before) + 1}")

    assert code != 0
    name, _, _ = setting.partition("=")
    assert name.rpartition(".")[2] in complaint
    assert f"{statefulset} was installed with {was}" in complaint
    assert f"kubectl delete statefulset {statefulset} -n {NAMESPACE} --cascade=orphan" in complaint
    assert release.replicas() == before


@pytest.mark.parametrize("size", ["1024Mi", "1.0Gi", "1073741824"])
def test_the_same_volume_size_written_differently_is_accepted(release: Release, size: str) -> None:
    code, complaint = release.say("upgrade", f"gateway.spool.size={size}", "gateway.replicas=5")

    assert code == 0, complaint
    assert release.replicas() == "5"
