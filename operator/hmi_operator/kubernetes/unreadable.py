"""What is done about an object that the API server took and this operator cannot read.

The resource types and the operator come from one installation, so this is for the minutes of an upgrade. The
user is told in the status, not only the log, and a deletion goes on: what is erased is found by name and uid.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hmi_api.names import FINALIZER
from hmi_api.resources.conditions import Condition, Phase
from hmi_api.resources.reasons import Reason
from hmi_operator.kubernetes.api import KubeApi, Manifest
from hmi_operator.kubernetes.cache import ResourceCache
from hmi_operator.kubernetes.errors import Conflict
from hmi_operator.kubernetes.kinds import RESOURCES
from hmi_operator.kubernetes.objects import Unreadable
from hmi_operator.planning.conditions import ConditionWriter
from hmi_operator.ports import ControlPlane, ResourceRef, TrainingJobs
from hmi_operator.reconciler import Reconciler, ReconcileResult

logger = logging.getLogger(__name__)

_CONDITIONS = TypeAdapter(list[Condition])
RETRY_SECONDS = 5.0


class ReadableOrTold:
    """Reconciles what can be read with the engine, and tells what is wrong with the rest."""

    def __init__(
        self,
        engine: Reconciler,
        cache: ResourceCache,
        api: KubeApi,
        control_plane: ControlPlane,
        jobs: TrainingJobs,
        *,
        permit: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._api = api
        self._control_plane = control_plane
        self._jobs = jobs
        self._permit = permit

    async def reconcile(self, ref: ResourceRef) -> ReconcileResult:
        """Bring one resource a step nearer to what is declared, or say why that cannot be."""
        found = self._cache.unreadable(ref)
        if found is None:
            return await self._engine.reconcile(ref)
        present = await self._api.get(RESOURCES[ref.kind], ref.namespace, ref.name)
        if present is None or present["metadata"]["uid"] != found.uid:
            return ReconcileResult()
        self._permit()
        try:
            if "deletionTimestamp" in present["metadata"]:
                await self._erase(ref, present)
            else:
                await self._tell(found, present)
        except Conflict:
            return ReconcileResult(RETRY_SECONDS, enqueue=(ref,))
        return ReconcileResult()

    async def _tell(self, found: Unreadable, present: Manifest) -> None:
        metadata, status = present["metadata"], present.get("status") or {}
        message = f"This version of the operator cannot read it: {found.problem}"
        writer = ConditionWriter(
            _read_conditions(status), generation=metadata["generation"], now=datetime.now(UTC)
        )
        writer.false("Accepted", Reason.UNREADABLE, message)
        writer.stalled(Reason.UNREADABLE, message)
        if not status.get("version"):
            writer.false("Ready", Reason.UNREADABLE, message)
        phase = Phase.DEGRADED if status.get("version") else Phase.FAILED
        said: dict[str, Any] = {
            "phase": phase.value,
            "observedGeneration": metadata["generation"],
            "conditions": [
                one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in writer.written
            ],
        }
        if any(status.get(name) != value for name, value in said.items()):
            patch = {"metadata": _precondition(present), "status": said}
            await self._api.merge_patch(
                RESOURCES[found.ref.kind], found.ref.namespace, found.ref.name, patch, "status"
            )

    async def _erase(self, ref: ResourceRef, present: Manifest) -> None:
        held = present["metadata"].get("finalizers") or []
        if FINALIZER not in held:
            return
        await self._jobs.erase(present["metadata"]["uid"], ref.namespace)
        if ref.kind == "Domain":
            await self._control_plane.erase_domain(ref.key)
        else:
            await self._control_plane.erase_adapter(ref.key)
        left = [name for name in held if name != FINALIZER]
        patch = {"metadata": {**_precondition(present), "finalizers": left}}
        await self._api.merge_patch(RESOURCES[ref.kind], ref.namespace, ref.name, patch)


def _precondition(present: Manifest) -> dict[str, Any]:
    return {name: present["metadata"][name] for name in ("uid", "resourceVersion")}


def _read_conditions(status: dict[str, Any]) -> list[Condition]:
    try:
        return _CONDITIONS.validate_python(status.get("conditions") or [])
    except ValidationError:
        return []
