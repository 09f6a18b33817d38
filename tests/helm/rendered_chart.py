"""Renders the chart and finds objects in the result."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "hmi"
VALUES = Path(__file__).parent / "values"
VALUE_SETS = sorted(file.stem for file in VALUES.glob("*.yaml"))
NAMESPACE = "hmi-system"
COMPONENT = "app.kubernetes.io/component"

Manifest = dict[str, Any]


@dataclass(frozen=True)
class RenderedChart:
    """All objects that the chart renders with one set of values."""

    values: str
    objects: tuple[Manifest, ...]

    def of(self, kind: str) -> list[Manifest]:
        """Return the objects of a kind."""
        return [manifest for manifest in self.objects if manifest["kind"] == kind]

    def one(self, kind: str, name: str) -> Manifest:
        """Return the object of that kind and name."""
        (found,) = [manifest for manifest in self.of(kind) if manifest["metadata"]["name"] == name]
        return found

    def pods(self) -> Iterator[tuple[str, Manifest]]:
        """Give every pod or pod template, by its component."""
        for manifest in self.objects:
            if manifest["kind"] == "Pod":
                yield manifest["metadata"]["labels"][COMPONENT], manifest
            elif manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
                template = manifest["spec"]["template"]
                yield template["metadata"]["labels"][COMPONENT], template

    def pod(self, component: str) -> Manifest:
        """Return the first pod template of a component."""
        return next(pod for found, pod in self.pods() if found == component)

    def containers(self) -> Iterator[tuple[str, Manifest]]:
        """Give every container, initial ones too, by its component."""
        for component, pod in self.pods():
            for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
                yield component, container


@dataclass(frozen=True)
class Helm:
    """The helm program."""

    program: str

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run it and return its output, whether it succeeds or not."""
        return subprocess.run(
            [self.program, *arguments], capture_output=True, text=True, check=False, timeout=60
        )

    def template(self, *arguments: str, release: str = "hmi") -> "subprocess.CompletedProcess[str]":
        """Render the chart with further arguments."""
        return self.run("template", release, str(CHART), "--namespace", NAMESPACE, *arguments)

    @cache  # noqa: B019 -- one program and a handful of value sets
    def render(self, values: str, release: str = "hmi") -> RenderedChart:
        """Render the chart with a set of values."""
        done = self.template("--values", str(VALUES / f"{values}.yaml"), release=release)
        assert done.returncode == 0, done.stderr
        objects = tuple(manifest for manifest in yaml.safe_load_all(done.stdout) if manifest)
        return RenderedChart(values, objects)


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Say whether a label selector (``matchLabels`` only) takes these labels."""
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
