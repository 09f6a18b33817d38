"""A real etcd and kube-apiserver on free ports, in a folder of their own."""

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import trustme
import yaml
from kube_assets import CHECKOUT

from hmi_operator.embedded import tether

ADMIN_TOKEN = "an-administrator"
_START_SECONDS = 300.0
_STOP_SECONDS = 10.0


@dataclass(frozen=True)
class KubeServer:
    """A running API server and how to reach it as an administrator."""

    url: str
    folder: Path
    assets: Path

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig of the group system:masters."""
        return self.folder / "kubeconfig"

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """Run kubectl and return its output; with ``check`` False, standard error too."""
        done = subprocess.run(
            [self.assets / "kubectl", "--kubeconfig", self.kubeconfig, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects."""
        self.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def read(self, path: str) -> Any:
        """Return what the API server answers to a GET."""
        return json.loads(self.kubectl("get", "--raw", path))


def existing_server(kubeconfig: Path, assets: Path, folder: Path) -> KubeServer:
    """Return a cluster that somebody else runs; ``folder`` gets a copy of its kubeconfig."""
    config = yaml.safe_load(kubeconfig.read_text())
    (folder / "kubeconfig").write_text(kubeconfig.read_text())
    return KubeServer(config["clusters"][0]["cluster"]["server"], folder, assets)


def install_types(server: KubeServer) -> None:
    """Bring HMI's resource types to an API server."""
    files = sorted((CHECKOUT / "crds").glob("*.yaml"))
    server.kubectl("apply", "--server-side", *(f"--filename={file}" for file in files))
    server.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")


@contextmanager
def running_server(assets: Path, folder: Path) -> Iterator[KubeServer]:
    """Start both, wait until they answer, and end them afterwards."""
    with ExitStack() as stack:
        etcd_port, peer_port, port = _free_ports(3)
        etcd = f"http://127.0.0.1:{etcd_port}"
        authority, key = _certificates(folder)
        (folder / "tokens.csv").write_text(f'{ADMIN_TOKEN},admin,admin,"system:masters"\n')
        server = KubeServer(f"https://127.0.0.1:{port}", folder, assets)
        _write_kubeconfig(server, authority)
        started = [
            _started(stack, folder, assets / "etcd", *_etcd_flags(folder, etcd, peer_port)),
            _started(stack, folder, assets / "kube-apiserver", *_server_flags(folder, etcd, port, key)),
        ]
        _await_ready(server, authority, started)
        yield server


def _etcd_flags(folder: Path, etcd: str, peer_port: int) -> list[str]:
    peers = f"http://127.0.0.1:{peer_port}"
    return [
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={etcd}",
        f"--advertise-client-urls={etcd}",
        f"--listen-peer-urls={peers}",
        "--unsafe-no-fsync",
        "--log-level=error",
    ]


def _server_flags(folder: Path, etcd: str, port: int, key: Path) -> list[str]:
    return [
        f"--etcd-servers={etcd}",
        f"--secure-port={port}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--tls-cert-file={folder / 'server.crt'}",
        f"--tls-private-key-file={key}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-cluster-ip-range=10.96.0.0/24",
        "--allow-privileged=true",
        # No controller creates default service accounts here, and no pod runs under them.
        "--disable-admission-plugins=ServiceAccount",
    ]


def _certificates(folder: Path) -> tuple[Path, Path]:
    """Write the authority and the server's certificate and key; return the authority and the key."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost", "kubernetes.default.svc")
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "server.crt"))
    certificate.private_key_pem.write_to_path(str(folder / "server.key"))
    return folder / "ca.crt", folder / "server.key"


def _write_kubeconfig(server: KubeServer, authority: Path) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "test", "cluster": {"server": server.url, "certificate-authority": str(authority)}}
        ],
        "users": [{"name": "admin", "user": {"token": ADMIN_TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }
    server.kubeconfig.write_text(yaml.safe_dump(config))


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def _started(stack: ExitStack, folder: Path, binary: Path, *flags: str) -> "subprocess.Popen[bytes]":
    output = stack.enter_context((folder / f"{binary.name}.log").open("wb"))
    # Tied to this process, so that none is left behind by a test run that is killed.
    command = [sys.executable, tether.__file__, str(os.getpid()), str(binary), *flags]
    process = subprocess.Popen(command, stdout=output, stderr=output)
    stack.callback(_end, process)
    return process


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _await_ready(server: KubeServer, authority: Path, started: list["subprocess.Popen[bytes]"]) -> None:
    tls = ssl.create_default_context(cafile=str(authority))
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            httpx.get(f"{server.url}/readyz", verify=tls, timeout=5).raise_for_status()
            return
        except httpx.HTTPError as error:
            dead = [process for process in started if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = [file.read_text()[-2000:] for file in server.folder.glob("*.log")]
                raise RuntimeError("the API server did not start: " + "\n".join(logs)) from error
            time.sleep(0.05)  # between two checks of the condition
