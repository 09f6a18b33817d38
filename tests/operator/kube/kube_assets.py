"""Finds etcd, kube-apiserver and kubectl: in the environment, beside the checkout, cached or by download."""

import hashlib
import io
import os
import platform
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import httpx

NEEDED = ("etcd", "kube-apiserver", "kubectl")
ENVTEST = "v1.30.0"
SHA512 = {
    "x86_64": (
        "amd64",
        "d53870e1a6c9b3b50366489a9387f4e254c664955e932e3e25e2088bb437b270"
        "bfab75d241b50849233f9a34bb1f08b41567ebb81ea29352104ae0f5b1cb9e88",
    ),
    "aarch64": (
        "arm64",
        "140748efaa394598f50175e809cd53896881ed046d93ebdfbd5442100f68b3d8"
        "d51fd22f8cf1ae06a6e43473897b789df0db6e0ae6c45c8320b000d5ee900005",
    ),
}
RELEASES = "https://github.com/kubernetes-sigs/controller-tools/releases/download"
CHECKOUT = Path(__file__).resolve().parents[3]
_LOCAL_SECONDS = 180
_DOWNLOAD_SECONDS = 20


class NoAssets(Exception):
    """There is no API server to test against; the message names the command that installs one."""


def kube_assets() -> Path:
    """Return a folder that contains the needed programs. Raises ``NoAssets``."""
    tried = []
    places: list[Callable[[], Path]] = [_from_environment, _beside_checkout, _from_cache, _downloaded]
    for place in places:
        try:
            return _checked(place())
        except NoAssets as reason:
            tried.append(str(reason))
    raise NoAssets(
        f"no kube-apiserver: {'; '.join(tried)}. Get one: go install "
        "sigs.k8s.io/controller-runtime/tools/setup-envtest@latest && "
        "export KUBEBUILDER_ASSETS=$(setup-envtest use -p path)"
    )


def _checked(folder: Path) -> Path:
    missing = [name for name in NEEDED if not os.access(folder / name, os.X_OK)]
    if missing:
        raise NoAssets(f"{folder} has no {', '.join(missing)}")
    return folder


def _from_environment() -> Path:
    named = os.environ.get("KUBEBUILDER_ASSETS")
    if not named:
        raise NoAssets("KUBEBUILDER_ASSETS is not set")
    return Path(named)


def _beside_checkout() -> Path:
    script = CHECKOUT.parent / "shared" / "kube" / "cluster"
    if not script.exists():
        raise NoAssets("there is no ../shared/kube/cluster")
    try:
        done = subprocess.run(
            [script, "assets"], capture_output=True, text=True, check=True, timeout=_LOCAL_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise NoAssets(f"../shared/kube/cluster assets failed ({type(error).__name__})") from error
    return Path(done.stdout.strip().splitlines()[-1])


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "hmi" / "envtest" / ENVTEST


def _from_cache() -> Path:
    if not _cache().is_dir():
        raise NoAssets(f"the cache {_cache()} is empty")
    return _cache()


def _downloaded() -> Path:
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in SHA512:
        raise NoAssets(f"no bundle is known for {platform.system()} {machine}")
    architecture, digest = SHA512[machine]
    address = f"{RELEASES}/envtest-{ENVTEST}/envtest-{ENVTEST}-linux-{architecture}.tar.gz"
    try:
        answer = httpx.get(address, follow_redirects=True, timeout=_DOWNLOAD_SECONDS).raise_for_status()
    except httpx.HTTPError as error:
        raise NoAssets(f"the envtest bundle could not be downloaded ({error})") from error
    if hashlib.sha512(answer.content).hexdigest() != digest:
        raise NoAssets(f"{address} is not the bundle that is expected")
    _unpack(answer.content, _cache())
    return _cache()


def _unpack(bundle: bytes, folder: Path) -> None:
    unfinished = folder.with_name(folder.name + ".unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member) if Path(member.name).name in NEEDED else None
            if content is not None:
                file = unfinished / Path(member.name).name
                file.write_bytes(content.read())
                file.chmod(0o755)
    unfinished.rename(folder)
