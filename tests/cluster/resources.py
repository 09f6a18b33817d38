"""Domains and TaskAdapters of the cluster: apply, follow and read them."""

import time
from collections.abc import Callable, Collection
from typing import Any

from kubectl import Kubectl, Object, condition, is_true, key_of, wait_for

BOTH = "domains.hmi.dev,taskadapters.hmi.dev"
_SHORT = {"Domain": "domain", "TaskAdapter": "taskadapter"}


class Resources:
    """The Domains and TaskAdapters of all tenants."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl

    def all(self, namespaces: Collection[str] | None = None) -> list[Object]:
        """Return Domains and TaskAdapters: all, or those of some namespaces."""
        found = self._kubectl.items(BOTH, "--all-namespaces")
        return [one for one in found if namespaces is None or one["metadata"]["namespace"] in namespaces]

    def get(self, kind: str, namespace: str, name: str) -> Object:
        """Return one object."""
        found: Object = self._kubectl.json("get", f"{_SHORT[kind]}.hmi.dev", name, "-n", namespace)
        return found

    def describe(self, kind: str, namespace: str, name: str) -> str:
        """Return the output of ``kubectl describe``."""
        return self._kubectl.text("describe", f"{_SHORT[kind]}.hmi.dev", name, "-n", namespace)

    def follow_until_ready(self, namespaces: Collection[str], limit_s: float) -> None:
        """Wait until all are Ready and print their progress; fail as soon as one has phase Failed."""
        started, printed = time.monotonic(), {}

        def all_ready() -> bool:
            found = self.all(namespaces)
            for one in found:
                status = one.get("status", {})
                line = f"{status.get('phase', '')} {status.get('progress') or ''}".rstrip()
                if printed.get(key_of(one), "") != line:
                    printed[key_of(one)] = line
                    print(f"[{time.monotonic() - started:6.1f}s] {key_of(one)}: {line}", flush=True)
                assert status.get("phase") != "Failed", f"{key_of(one)} failed:\n{conditions_of(one)}"
            return bool(found) and all(is_true(one, "Ready") for one in found)

        wait_for(all_ready, limit_s, "everything Ready", lambda: table(self.all(namespaces)))

    def reached(
        self,
        kind: str,
        namespace: str,
        name: str,
        wanted: Callable[[Object], bool],
        limit_s: float,
        what: str,
    ) -> Object:
        """Wait until an object meets a condition, and return it."""

        def find() -> Object | None:
            found = self.get(kind, namespace, name)
            return found if wanted(found) else None

        return wait_for(
            find, limit_s, f"{name}: {what}", lambda: conditions_of(self.get(kind, namespace, name))
        )

    def ready(self, kind: str, namespace: str, name: str, limit_s: float) -> Object:
        """Wait until an object is Ready with its present spec."""
        return self.reached(kind, namespace, name, lambda one: is_true(one, "Ready"), limit_s, "Ready")


def has_reason(type_: str, reason: str) -> Callable[[Object], bool]:
    """Return a check: whether a condition of an object has this reason."""
    return lambda body: condition(body, type_).get("reason") == reason


def conditions_of(body: Object) -> str:
    """Return an object's conditions, one per line."""
    found: list[dict[str, Any]] = body.get("status", {}).get("conditions", [])
    return "\n".join(
        f"  {one['type']}: {one['status']} {one['reason']}: {one.get('message', '')}" for one in found
    )


def table(bodies: Collection[Object]) -> str:
    """Return objects with their conditions, for a failure's message."""
    return "\n".join(
        f"{key_of(one)} {one.get('status', {}).get('phase')}\n{conditions_of(one)}" for one in bodies
    )
