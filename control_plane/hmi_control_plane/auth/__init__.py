"""Authentication: who is calling, told by an API key, the admin key or the internal token.

Belongs here: the form of keys, their hashes, the cache of checked keys, FastAPI dependencies that give an
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
    Door,
    Guarded,
    bearer,
    require_token,
)

__all__ = [
    "AdmittedCaller",
    "Authenticator",
    "CredentialMiddleware",
    "Door",
    "Guarded",
    "Identity",
    "NewKey",
    "bearer",
    "hash_secret",
    "new_key",
    "parse_key",
    "require_token",
]
