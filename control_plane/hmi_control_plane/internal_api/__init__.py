"""The internal API, ``/internal/v1``: what the reconciler, training programs and runtimes call.

Belongs here: routers that serve the contract of ``hmi_api.internal.runs``, and the long poll's waiting.
Forbidden here: SQL, and anything a tenant or an administrator may call.
"""

from hmi_control_plane.internal_api.router import ARTIFACTS_PREFIX, PREFIX, build

__all__ = ["ARTIFACTS_PREFIX", "PREFIX", "build"]
