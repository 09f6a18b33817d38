"""Tenants and keys as tables."""

from collections.abc import Sequence
from typing import Any

from hmi_cli.render.tables import NONE, age, format_table


def tenants_table(tenants: Sequence[dict[str, Any]]) -> str:
    """Return one line a tenant; deleted ones with the day of their deletion."""
    deleted = any("deletedAt" in tenant for tenant in tenants)
    rows = [
        [
            tenant["name"],
            tenant["id"],
            age(tenant.get("createdAt")),
            *([tenant["deletedAt"][:10]] if deleted else []),
        ]
        for tenant in tenants
    ]
    return format_table(["NAME", "ID", "AGE", *(["DELETED"] if deleted else [])], rows)


def keys_table(keys: Sequence[dict[str, Any]]) -> str:
    """Return one line a key; secrets are not known to anyone any more."""
    rows = [
        [
            key["id"],
            key.get("name") or NONE,
            "revoked" if key.get("revokedAt") else "active",
            str(key.get("lastUsedOn") or NONE),
            age(key.get("createdAt")),
        ]
        for key in keys
    ]
    return format_table(["ID", "NAME", "STATE", "LAST USED", "AGE"], rows)
