"""Events about what was erased from the catalog because its object was gone."""

import hashlib
import logging
from typing import Any

from hmi_api.errors import HmiError
from hmi_api.names import API_VERSION
from hmi_api.resources.reasons import Reason
from hmi_operator.kubernetes.api import KubeApi, Manifest
from hmi_operator.kubernetes.errors import Conflict
from hmi_operator.kubernetes.events import REPORTER, moment
from hmi_operator.kubernetes.kinds import EVENTS
from hmi_operator.orphans import Orphan

logger = logging.getLogger(__name__)


async def tell_of_orphan(api: KubeApi, orphan: Orphan, namespace: str, instance: str) -> None:
    """Record an Event on an object that is gone; where its namespace is gone too, on the operator.

    ``namespace`` and ``instance`` are the operator's own namespace and pod.
    """
    ref = orphan.ref
    there = {
        "apiVersion": API_VERSION,
        "kind": ref.kind,
        "namespace": ref.namespace,
        "name": ref.name,
        "uid": orphan.uid,
    }
    here = {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": instance}
    for regarding in (there, here):
        try:
            await api.create(EVENTS, regarding["namespace"], build_orphan_event(orphan, regarding, instance))
        except Conflict:
            return  # an earlier try was done though its answer was lost
        except HmiError as error:
            logger.info("an Event on %s was not taken in %s: %s", ref, regarding["namespace"], error)
        else:
            return


def build_orphan_event(orphan: Orphan, regarding: dict[str, Any], instance: str) -> Manifest:
    """Return the Event that an orphan was erased."""
    at = moment()
    tail = hashlib.sha256(f"{orphan.uid}/{at}".encode()).hexdigest()[:16]
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {"name": f"{orphan.ref.name}.{tail}", "namespace": regarding["namespace"]},
        "eventTime": at,
        "type": "Normal",
        "reason": Reason.ORPHAN_ERASED.value,
        "note": f"{orphan.ref} was deleted while the operator did not hold it; what the catalog had of it is "
        "erased.",
        "action": "Erase",
        "regarding": regarding,
        "reportingController": REPORTER,
        "reportingInstance": instance,
    }
