"""The internal API, ``/internal/v1``: what the operator, trainers and runtimes call.

It serves the types of ``hmi_api.internal``. Each route names the roles that may call it. There is no
SQL here.
"""

PREFIX = "/internal/v1"
ARTIFACTS_PREFIX = f"{PREFIX}/artifacts"
