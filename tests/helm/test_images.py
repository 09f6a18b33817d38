"""The images: locked packages, no root user, and torch only in those that need it."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from rendered_chart import ROOT, RenderedChart

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {
    "control-plane": ("control-plane", "operator", "cli", "s3"),
    "runtime": ("runtime", "cpu", "s3"),
    "runtime-cuda": ("runtime", "cuda", "s3"),
}
LOCK_LINE = re.compile(r"(?P<name>[a-z0-9.-]+)==(?P<version>[^ ]+) --hash=sha256:[0-9a-f]{64}")


def _locked(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
    matches = [LOCK_LINE.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(matches), f"{name}.lock has a line without a version and a hash"
    return {match["name"]: match["version"] for match in matches if match}


def test_the_readme_names_the_versions_in_the_images() -> None:
    locked = _locked("runtime")
    torch = locked["torch"].removesuffix("+cpu")
    row = f"| PyTorch (CPU), Transformers | {torch}, {locked['transformers']} |"
    assert row in (ROOT / "README.md").read_text()
    assert f"| Python | {_python()} |" in (ROOT / "README.md").read_text()


def _python() -> str:
    """Return the Python that every image is built on."""
    (version,) = set(re.findall(r"^FROM python:(\d+\.\d+)-", DOCKERFILE, re.MULTILINE))
    return str(version)


@pytest.mark.parametrize("name", EXTRAS)
def test_locks_satisfy_the_projects_requirements(name: str) -> None:
    locked = _locked(name)
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *(item for extra in EXTRAS[name] for item in extras[extra]),
    ]

    for text in wanted:
        requirement = Requirement(text)
        version = locked.get(requirement.name.lower().replace("_", "-"))
        assert version is not None, f"{requirement.name} is not locked: run scripts/lock {name}"
        assert requirement.specifier.contains(version, prereleases=True), f"run scripts/lock {name}"


def test_only_runtime_images_have_torch() -> None:
    assert "torch" not in _locked("control-plane")
    assert _locked("runtime")["torch"].endswith("+cpu")
    assert not any(name.startswith("nvidia-") for name in _locked("runtime"))
    assert "+" not in _locked("runtime-cuda")["torch"]


def test_every_image_of_the_chart_has_a_non_root_target(trial: RenderedChart) -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    images = {container["image"] for _, container in trial.containers()}

    assert {image.split(":")[0].removeprefix("hmi-") for image in images} <= targets
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))
    assert bases - targets == {"python:3.11-slim-bookworm", "scratch"}
    for target in ("base", "postgresql"):
        stage = DOCKERFILE.split(f" AS {target}\n")[1].split("\nFROM ")[0]
        assert "\nUSER 65532:65532" in stage
    assert "USER 0" not in DOCKERFILE


def test_the_build_context_has_all_packages_and_little_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]

    assert "*" in lines
    assert {f"!{package}" for package in packages} <= set(lines)
