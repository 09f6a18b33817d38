"""The embedded system on one machine: files, subprocesses, and an API shaped like that of Kubernetes.

The resource store with its HTTP API, training subprocesses and their controller. The rules of reconciliation
are in ``hmi_operator.planning``. How they fit together::

    store = FileResourceStore(home / "resources")
    jobs = SubprocessJobs(home / "runs", environment)
    app.include_router(router(store, auth))
    async with ControlPlaneClient(url, token) as client:
        await EmbeddedController(store, client, jobs).run(stop)
"""

from hmi_operator.embedded.api import router
from hmi_operator.embedded.controller import EmbeddedController
from hmi_operator.embedded.processes import SubprocessJobs
from hmi_operator.embedded.store import FileResourceStore

__all__ = ["EmbeddedController", "FileResourceStore", "SubprocessJobs", "router"]
