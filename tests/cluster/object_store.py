"""An S3 server in the cluster: versitygw, copied into a pod of HMI's own image."""

import subprocess
from pathlib import Path

from kubectl import Kubectl, wait_for
from tenants import idle_pod

NAMESPACE = "hmi-s3"
_KEY, _SECRET = "e2e-key", "e2e-secret"
_PORT = 7070
_DATA = "/tmp/data"  # noqa: S108 -- in the server's own pod
_SECONDS = 120


class ObjectStore:
    """The server ``s3.hmi-s3.svc:7070`` with the bucket ``hmi``; ``program`` is versitygw for the node."""

    def __init__(self, kubectl: Kubectl, program: Path) -> None:
        self._kubectl = kubectl
        self._program = program

    def grant(self, namespace: str) -> None:
        """Put the Secret with the server's credentials into a namespace."""
        data = {"AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET}
        metadata = {"name": "hmi-s3", "namespace": namespace}
        self._kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})

    def start(self, image: str) -> None:
        """Start the server in a pod of ``image``, which must have a shell."""
        service = {"selector": {"app": "s3"}, "ports": [{"port": _PORT}]}
        self._kubectl.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "s3", "namespace": NAMESPACE},
                "spec": service,
            },
            idle_pod(NAMESPACE, "s3", image),
        )
        ready = ("wait", "-n", NAMESPACE, "--for=condition=Ready", "pod/s3", f"--timeout={_SECONDS}s")
        self._kubectl.run(*ready, limit_s=_SECONDS + 10)
        command = ["kubectl", *_exec("cat > /tmp/versitygw && chmod +x /tmp/versitygw")]
        with self._program.open("rb") as binary:
            subprocess.run(command, stdin=binary, check=True, capture_output=True, timeout=_SECONDS)
        self._kubectl.run(
            *_exec(
                f"mkdir -p {_DATA}/hmi && export ROOT_ACCESS_KEY={_KEY} ROOT_SECRET_KEY={_SECRET} && "
                f"(/tmp/versitygw -p :{_PORT} posix --nometa {_DATA} >/tmp/log 2>&1 </dev/null &)"
            )
        )
        wait_for(self._listens, _SECONDS, "the S3 server listens", lambda: self._shell("cat /tmp/log"))

    def files(self) -> list[str]:
        """Return the objects in the bucket."""
        return sorted(self._shell(f"find {_DATA}/hmi -type f").split())

    def _listens(self) -> bool:
        probe = f"import socket; socket.create_connection(('127.0.0.1', {_PORT}), 5)"
        command = ("exec", "-n", NAMESPACE, "s3", "--", "python", "-c", probe)
        return self._kubectl.run(*command, check=False).returncode == 0

    def _shell(self, command: str) -> str:
        return self._kubectl.run(*_exec(command)).stdout


def _exec(command: str) -> list[str]:
    return ["exec", "-i", "-n", NAMESPACE, "s3", "--", "sh", "-c", command]
