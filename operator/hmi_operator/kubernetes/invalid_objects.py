"""Reconciliation of objects that the API server accepted and this operator cannot parse.

CRDs and operator come from one installation, so this happens only for some minutes of an upgrade. The status
reports the problem, and a deletion still works: what belongs to an object is found by its name and uid.
"""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hmi_api.names import FINALIZER
from hmi_api.resources.conditions import Condition, Phase
from hmi_api.resources.reasons import Reason
from hmi_operator.kubernetes.cache import ResourceCache
from hmi_operator.kubernetes.client import ApiServerConflict, KubernetesClient, Manifest
from hmi_operator.kubernetes.objects import InvalidObject, patch_object, read_object
from hmi_operator.planning.conditions import ConditionWriter
from hmi_operator.ports import Ports, ResourceRef
from hmi_operator.reconciler import Reconciler, ReconcileResult

logger = logging.getLogger(__name__)

_CONDITIONS = TypeAdapter(list[Condition])
RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class InvalidObjectReconciler:
    """Passes valid resources to the reconciler, and reports in the status why others are invalid."""

    reconciler: Reconciler
    ports: Ports
    cache: ResourceCache
    client: KubernetesClient

    async def reconcile(self, ref: ResourceRef) -> ReconcileResult:
        """Reconcile one resource, or report why it cannot be parsed."""
        found = self.cache.invalid(ref)
        if found is None:
            return await self.reconciler.reconcile(ref)
        present = await read_object(self.client, ref)
        if present is None or present["metadata"]["uid"] != found.uid:
            return ReconcileResult()
        self.ports.require_leadership()
        try:
            if "deletionTimestamp" in present["metadata"]:
                await self._delete(ref, present)
            else:
                await self._report(found, present)
        except ApiServerConflict:
            return ReconcileResult(RETRY_SECONDS, enqueue=(ref,))
        return ReconcileResult()

    async def _report(self, found: InvalidObject, present: Manifest) -> None:
        metadata, status = present["metadata"], present.get("status") or {}
        message = f"This version of the operator cannot parse it: {found.problem}"
        writer = ConditionWriter(
            _read_conditions(status), generation=metadata["generation"], now=datetime.now(UTC)
        )
        writer.false("Accepted", Reason.UNREADABLE, message)
        writer.stalled(Reason.UNREADABLE, message)
        if not status.get("version"):
            writer.false("Ready", Reason.UNREADABLE, message)
        phase = Phase.DEGRADED if status.get("version") else Phase.FAILED
        wanted: dict[str, Any] = {
            "phase": phase.value,
            "observedGeneration": metadata["generation"],
            "conditions": [
                one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in writer.written
            ],
        }
        if any(status.get(name) != value for name, value in wanted.items()):
            patch = {"metadata": _precondition(present), "status": wanted}
            await patch_object(self.client, found.ref, patch, status=True)

    async def _delete(self, ref: ResourceRef, present: Manifest) -> None:
        finalizers = present["metadata"].get("finalizers") or []
        if FINALIZER not in finalizers:
            return
        await self.ports.jobs.delete_all(present["metadata"]["uid"], ref.namespace)
        await self.ports.control_plane.delete(ref.kind, ref.key)
        left = [name for name in finalizers if name != FINALIZER]
        patch = {"metadata": {**_precondition(present), "finalizers": left}}
        await patch_object(self.client, ref, patch)


def _precondition(present: Manifest) -> dict[str, Any]:
    return {name: present["metadata"][name] for name in ("uid", "resourceVersion")}


def _read_conditions(status: dict[str, Any]) -> list[Condition]:
    try:
        return _CONDITIONS.validate_python(status.get("conditions") or [])
    except ValidationError:
        return []
