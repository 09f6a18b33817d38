"""Tenants of the installation: their keys, their requests through the gateway, and their usage."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from administration import Administration, Answer
from installation import NAMESPACE, RELEASE, Installation
from kubectl import Kubectl, Object, wait_for

CLIENT_NAMESPACE = "hmi-clients"
GATEWAY = f"http://{RELEASE}-gateway.{NAMESPACE}.svc"
FLUSHED_SECONDS = 60.0
_IN_CLUSTER = Path(__file__).with_name("in_cluster")
_POD_SECONDS = 120
_LOAD_ENDS_SECONDS = 90.0
_STOP_FILE = "/tmp/stop"  # noqa: S108 -- in the client's own pod


@dataclass
class Tenants:
    """Administers tenants as the README says, and sends their requests from a pod to the gateway's Service.

    ``requests`` and ``rows`` count what was answered with 200, by tenant and adapter: what the ledger must
    say beside what it said before.
    """

    kubectl: Kubectl
    administration: Administration
    keys: dict[str, str] = field(default_factory=dict)
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    before: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)

    # --- as an administrator --------------------------------------------------------------------------

    def ensure_key(self, tenant: str) -> str:
        """Create the tenant and a key, once."""
        if tenant not in self.keys:
            made = self.administration.call("POST", "/admin/v1/tenants", {"name": tenant})
            assert made.status in (201, 409), made.text
            key = self.administration.call("POST", f"/admin/v1/tenants/{tenant}/keys", {"name": "e2e"})
            assert key.status == 201, key.text
            self.keys[tenant] = key.body["key"]
            for meter in ("requests", "rows"):
                self.before[tenant, meter] = self.used(tenant, meter)
        return self.keys[tenant]

    def used(self, tenant: str, meter: str) -> Counter[str]:
        """Return what a tenant used of a meter, by adapter."""
        path = f"/admin/v1/usage?tenant={tenant}&group_by=adapter&meter={meter}"
        answer = self.administration.read(path)
        return Counter({item["adapter"]: item["quantity"] for item in answer["items"]})

    def await_usage(self, tenant: str) -> None:
        """Wait until exactly the answered requests are metered."""
        self._await_meter(tenant, "requests", self.requests)
        self._await_meter(tenant, "rows", self.rows)

    def _await_meter(self, tenant: str, meter: str, sent: Counter[tuple[str, str]]) -> None:
        answered = Counter({model: count for (owner, model), count in sent.items() if owner == tenant})
        expected = answered + self.before[tenant, meter]

        def agrees() -> bool:
            found = self.used(tenant, meter)
            assert found <= expected, f"more {meter} than were answered: {found}, not {expected}"
            return found == expected

        what = f"{meter} of {tenant} {dict(expected)}"
        wait_for(agrees, FLUSHED_SECONDS, what, lambda: self.used(tenant, meter))

    # --- as tenants -----------------------------------------------------------------------------------

    def start_client(self, installation: Installation) -> None:
        """Start the pod that sends requests, in a namespace outside of the installation."""
        gateway = installation.pods("gateway")[0]["spec"]["containers"][0]
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": CLIENT_NAMESPACE, "labels": labels}
        self.kubectl.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata},
            idle_pod(CLIENT_NAMESPACE, "client", gateway["image"]),
        )
        self.kubectl.run(
            *("wait", "-n", CLIENT_NAMESPACE, "--for=condition=Ready", "pod/client"),
            f"--timeout={_POD_SECONDS}s",
            limit_s=_POD_SECONDS + 10,
        )

    def send(self, *requests: Mapping[str, object]) -> list[Answer]:
        """Send requests as they are, several at once, without counting them."""
        done = self.kubectl.run(*_exec("ask.py", GATEWAY), stdin=json.dumps(requests), limit_s=180)
        return [Answer(one["status"], one["headers"], one["body"]) for one in json.loads(done.stdout)]

    def classify(self, requests: Sequence[tuple[str, str, Sequence[str]]]) -> list[Any]:
        """Classify texts, given as (tenant, model, texts), all at once; each must be answered."""
        answers = self.send(
            *(_classification(self.ensure_key(tenant), model, texts) for tenant, model, texts in requests)
        )
        for (tenant, model, texts), answer in zip(requests, answers, strict=True):
            assert answer.status == 200, f"{tenant}/{model}: {answer.status} {answer.text}"
            self.requests[tenant, model] += 1
            self.rows[tenant, model] += len(texts)
        return [answer.body for answer in answers]

    def status_of(self, tenant: str, model: str, text: str = "hello") -> int:
        """Send one request and return the status."""
        answer = self.send(_classification(self.ensure_key(tenant), model, [text]))[0]
        if answer.status == 200:
            self.requests[tenant, model] += 1
            self.rows[tenant, model] += 1
        return answer.status

    @contextmanager
    def load(self, targets: Sequence[tuple[str, str]], limit_s: float) -> Iterator["Load"]:
        """Send requests to models, given as (tenant, model), without a pause while the block runs."""
        owners = {model: tenant for tenant, model in targets}
        wanted = [
            {"model": model, "key": self.ensure_key(tenant), "texts": ["The chain slips on the hill."]}
            for tenant, model in targets
        ]
        self.kubectl.run("exec", "-n", CLIENT_NAMESPACE, "client", "--", "rm", "-f", _STOP_FILE)
        command = ["kubectl", *_exec("load.py", GATEWAY, _STOP_FILE, str(limit_s))]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            process.stdin.write(json.dumps(wanted))
            process.stdin.close()
            process.stdin = None  # communicate() must not write to it again
            load = Load()
            try:
                yield load
            finally:
                self.kubectl.run("exec", "-n", CLIENT_NAMESPACE, "client", "--", "touch", _STOP_FILE)
                out, err = process.communicate(timeout=_LOAD_ENDS_SECONDS)
            assert process.returncode == 0, err
            load.take(json.loads(out))
        for model, count in load.answered.items():
            self.requests[owners[model], model] += count
            self.rows[owners[model], model] += count


@dataclass
class Load:
    """The outcomes of a load that has ended."""

    outcomes: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest_s: float = 0.0

    def take(self, report: Object) -> None:
        """Read the client's report."""
        self.outcomes, self.answered = Counter(report["outcomes"]), Counter(report["answered"])
        self.failures, self.seconds = report["failures"], report["seconds"]
        self.slowest_s = report["slowest_s"]
        print(f"load: {dict(self.outcomes)} in {self.seconds} s, slowest {self.slowest_s} s", flush=True)


def _classification(key: str, model: str, texts: Sequence[str]) -> dict[str, object]:
    return {"method": "POST", "path": "/classify", "key": key, "body": {"model": model, "input": list(texts)}}


def _exec(program: str, *arguments: str) -> list[str]:
    source = (_IN_CLUSTER / program).read_text()
    return ["exec", "-i", "-n", CLIENT_NAMESPACE, "client", "--", "python", "-c", source, *arguments]


def idle_pod(namespace: str, name: str, image: str) -> Object:
    """Return a restricted pod that only sleeps; ``/tmp`` is writable."""
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    container = {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "infinity"],
        "securityContext": security,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 -- a volume of the pod's own
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }
