"""The form of an API key: ``hmi_{id}_{secret}``.

The id is public and finds the row; the secret is 256 random bits, so a plain SHA-256 of it withstands any
search and can be checked on every request, as a slow password hash could not.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass, field

_KEY = re.compile(r"hmi_([0-9a-f]{16})_([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made; ``token`` is shown to its owner once and not kept."""

    id: str
    token: str = field(repr=False)
    secret_hash: str = field(repr=False)


def new_key() -> NewKey:
    """Make a key from the system's random source."""
    key_id, secret = secrets.token_hex(8), secrets.token_hex(32)
    return NewKey(id=key_id, token=f"hmi_{key_id}_{secret}", secret_hash=hash_secret(secret))


def parse_key(token: str) -> tuple[str, str] | None:
    """Return the id and the secret of a well-formed key, else None."""
    match = _KEY.fullmatch(token)
    return (match[1], match[2]) if match else None


def hash_secret(secret: str) -> str:
    """Return what is stored of a secret: its SHA-256, hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()
