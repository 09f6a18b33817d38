"""The control plane's HTTP API as an administrator reaches it: a port-forward and curl, as the notes say."""

import base64
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from installation import NAMESPACE, RELEASE
from kubectl import Kubectl

_CURL_SECONDS = 30


@dataclass(frozen=True)
class Answer:
    """Status and text of an answer."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def body(self) -> Any:
        """The text as JSON."""
        return json.loads(self.text)


@dataclass(frozen=True)
class Administration:
    """Calls to the Service of the control plane."""

    kubectl: Kubectl

    def call(self, method: str, path: str, body: object = None) -> Answer:
        """Send one request with the administrator's key."""
        secret = self.kubectl.json("get", "secret", f"{RELEASE}-admin", "-n", NAMESPACE)
        return self._curl(method, path, base64.b64decode(secret["data"]["admin-key"]).decode(), body)

    def read(self, path: str) -> Any:
        """Return the JSON that a GET answers."""
        answer = self.call("GET", path)
        assert answer.status == 200, f"{path}: {answer.status} {answer.text}"
        return answer.body

    def as_operator(self, path: str) -> Answer:
        """Read from the internal API with a token of the operator's service account."""
        token = self.kubectl.text(
            *("create", "token", f"{RELEASE}-operator", "-n", NAMESPACE, "--audience", "hmi-control-plane")
        )
        return self._curl("GET", path, token.strip(), None)

    def _curl(self, method: str, path: str, key: str, body: object) -> Answer:
        with self._forwarded() as address:
            done = subprocess.run(
                [
                    *("curl", "-s", "-X", method, "-w", "\n%{http_code}", "--max-time", str(_CURL_SECONDS)),
                    *("-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json"),
                    *(("-d", json.dumps(body)) if body is not None else ()),
                    f"{address}{path}",
                ],
                capture_output=True,
                text=True,
                timeout=2 * _CURL_SECONDS,
                check=False,
            )
        text, _, status = done.stdout.rpartition("\n")
        return Answer(int(status), {}, text)

    @contextmanager
    def _forwarded(self) -> Iterator[str]:
        command = ["kubectl", "-n", NAMESPACE, "port-forward", f"svc/{RELEASE}-control-plane", ":80"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as forward:
            try:
                assert forward.stdout is not None
                said = forward.stdout.readline()  # Forwarding from 127.0.0.1:PORT -> 8080
                assert said.startswith("Forwarding from"), said
                yield "http://" + said.split()[2]
            finally:
                forward.terminate()
