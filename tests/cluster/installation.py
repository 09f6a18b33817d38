"""The release under test: installed, changed and removed by Helm as the README says."""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from kubectl import Kubectl, Object, wait_for

CHECKOUT = Path(__file__).resolve().parents[2]
NAMESPACE = "hmi-system"
RELEASE = "hmi"
PODS_SECONDS = 300.0
_HELM_SECONDS = 420.0


@dataclass
class Installation:
    """The release ``hmi`` in the namespace ``hmi-system``."""

    kubectl: Kubectl
    values: list[Path] = field(default_factory=lambda: [Path(__file__).with_name("values.yaml")])

    def helm(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run one helm command on the release's namespace."""
        done = subprocess.run(
            [os.environ.get("HELM", "helm"), *arguments, "--namespace", NAMESPACE],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=_HELM_SECONDS,
            check=False,
        )
        assert not check or done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done

    def install(self) -> str:
        """Install the release, or upgrade it to this checkout, and wait for its pods; return the notes."""
        self.kubectl.run("wait", "--for=condition=Ready", "node", "--all", "--timeout=60s")
        was_there = bool(self.pods())
        done = self.helm("upgrade", "--install", RELEASE, "helm/hmi", "--create-namespace", *self._flags())
        if was_there:  # perhaps of other images by the same names
            self.kubectl.run("rollout", "restart", "deployments,statefulsets", "-n", NAMESPACE)
        self.wait_until_ready()
        return done.stdout

    def upgrade(self, *settings: str) -> None:
        """Change values, as with ``--set``; return without waiting for the pods."""
        changes = [flag for setting in settings for flag in ("--set", setting)]
        self.helm("upgrade", RELEASE, "helm/hmi", *self._flags(), *changes)

    def uninstall(self) -> None:
        """Uninstall the release and wait until its pods are gone."""
        self.helm("uninstall", RELEASE, "--wait", "--timeout", "4m")
        wait_for(lambda: not self.pods(), 120, "no pods left", lambda: [_name(pod) for pod in self.pods()])

    def pods(self, component: str | None = None) -> list[Object]:
        """Return the pods of the release, or of one of its components."""
        labels = [f"app.kubernetes.io/instance={RELEASE}"]
        labels += [f"app.kubernetes.io/component={component}"] if component else []
        found = self.kubectl.items("pods", "-n", NAMESPACE, "-l", ",".join(labels))
        return [pod for pod in found if pod["status"].get("phase") != "Succeeded"]

    def wait_until_ready(self, component: str | None = None, limit_s: float = PODS_SECONDS) -> None:
        """Wait until all controllers have rolled out and their pods are Ready."""
        kinds = "deployments,statefulsets"
        labels = [f"app.kubernetes.io/instance={RELEASE}"]
        labels += [f"app.kubernetes.io/component={component}"] if component else []

        def all_ready() -> bool:
            found = self.kubectl.items(kinds, "-n", NAMESPACE, "-l", ",".join(labels))
            return bool(found) and all(map(_rolled_out, found))

        wait_for(all_ready, limit_s, "pods Ready", self._pods_text)

    def _pods_text(self) -> str:
        return self.kubectl.text("get", "pods", "-n", NAMESPACE)

    def _flags(self) -> list[str]:
        return [flag for file in self.values for flag in ("--values", str(file))]


def _rolled_out(controller: Object) -> bool:
    wanted, status = controller["spec"]["replicas"], controller["status"]
    return (
        status.get("observedGeneration") == controller["metadata"]["generation"]
        and status.get("updatedReplicas", 0) == wanted
        and status.get("readyReplicas", 0) == wanted
        and status.get("replicas", 0) == wanted
    )


def is_ready(pod: Object) -> bool:
    """Return whether a pod is Ready and not being deleted."""
    conditions = pod["status"].get("conditions", [])
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def _name(pod: Object) -> str:
    name: str = pod["metadata"]["name"]
    return name
