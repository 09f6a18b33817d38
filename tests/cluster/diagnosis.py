"""Records for the analysis of a failure: the cluster's state, events and logs."""

import subprocess

from installation import NAMESPACE

_SECONDS = 30
_LINES = "60"
_CHARACTERS = 12_000


def diagnosis() -> str:
    """Return the state of everything, as kubectl shows it."""
    parts = [
        _said("get", "domains.hmi.dev,taskadapters.hmi.dev", "-A", "-o", "wide"),
        _said("get", "pods,jobs", "-A", "-o", "wide"),
        _said("get", "events", "-A", "--sort-by=.lastTimestamp", keep=_CHARACTERS),
        *(_logs(NAMESPACE, pod) for pod in _names("-n", NAMESPACE)),
        *(_logs(*pod.split("/")) for pod in _names("-A", "-l", "app.kubernetes.io/component=trainer")[-4:]),
    ]
    return "\n".join(parts)


def _names(*where: str) -> list[str]:
    template = "{range .items[*]}{.metadata.name} {end}"
    if "-A" in where:
        template = "{range .items[*]}{.metadata.namespace}/{.metadata.name} {end}"
    done = _run("get", "pods", *where, "-o", f"jsonpath={template}")
    return done.stdout.split()


def _logs(namespace: str, pod: str) -> str:
    now = _said("logs", "-n", namespace, pod, "--all-containers", "--tail", _LINES)
    before = _run("logs", "-n", namespace, pod, "--previous", "--tail", _LINES)
    return now + (f"\n--- before its restart\n{before.stdout}" if before.returncode == 0 else "")


def _said(*arguments: str, keep: int = _CHARACTERS) -> str:
    done = _run(*arguments)
    return f"$ kubectl {' '.join(arguments)}\n{(done.stdout + done.stderr)[-keep:]}"


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            ["kubectl", *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(arguments, 1, "", str(error))
