"""Authentication by API key, admin key or internal token.

Belongs here: the format of keys, their hashes, the cache of checked keys, FastAPI dependencies that return an
identity. Forbidden here: what an identity may do with which resource; endpoints decide that by its tenant.
"""

from hmi_control_plane.auth.authenticator import (
    Authenticator,
    Identity,
    NewKey,
    hash_secret,
    new_key,
    parse_key,
)
from hmi_control_plane.auth.guards import (
    AdmittedCaller,
    CredentialMiddleware,
    GuardedPaths,
    RoleGuard,
    bearer,
    require_token,
)

__all__ = [
    "AdmittedCaller",
    "Authenticator",
    "CredentialMiddleware",
    "GuardedPaths",
    "Identity",
    "NewKey",
    "RoleGuard",
    "bearer",
    "hash_secret",
    "new_key",
    "parse_key",
    "require_token",
]
