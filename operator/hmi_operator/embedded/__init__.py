"""The embedded default's ends of the engine's ports: files, subprocesses, and an API shaped like Kubernetes'.

Belongs here: the resource store, its HTTP face, training subprocesses and the local reconciler. Forbidden
here: rules of reconciliation, which are ``hmi_operator.planning``'s.

How they fit together::

    store = FileResourceStore(home / "resources")
    jobs = SubprocessJobs(home / "runs", environment)
    app.include_router(router(store, auth))
    async with ControlPlaneClient(url, token) as client:
        await EmbeddedController(store, client, jobs).run(stop)
"""

from hmi_operator.embedded.api import router
from hmi_operator.embedded.controller import EmbeddedController
from hmi_operator.embedded.jobs import SubprocessJobs
from hmi_operator.embedded.store import FileResourceStore

__all__ = ["EmbeddedController", "FileResourceStore", "SubprocessJobs", "router"]
