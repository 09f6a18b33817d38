"""The health of an object as kstatus (sigs.k8s.io/cli-utils) computes it, which Flux and others go by.

Only the rules for kinds that kstatus does not know: generation, Reconciling, Stalled, Ready.
"""

from collections.abc import Mapping
from typing import Any, Literal

Health = Literal["Terminating", "InProgress", "Failed", "Current"]


def health_of(manifest: Mapping[str, Any]) -> Health:
    """Return the kstatus of an object. An object that it does not know is ``Current``."""
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    if status.get("observedGeneration") not in (None, metadata.get("generation")):
        return "InProgress"
    said = {one["type"]: one["status"] for one in status.get("conditions") or []}
    if said.get("Reconciling") == "True":
        return "InProgress"
    if said.get("Stalled") == "True":
        return "Failed"
    return "Current" if said.get("Ready", "True") == "True" else "InProgress"
