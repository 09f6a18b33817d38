"""Tenants and their keys."""

from collections.abc import Callable

from fastapi import APIRouter, Response

from hmi_control_plane.api.admin.schemas import (
    Cursor,
    DeletedTenantBody,
    KeyBody,
    KeyCreate,
    KeyCreated,
    Limit,
    Listing,
    TenantBody,
    TenantCreate,
    TenantUpdate,
    listing,
)
from hmi_control_plane.catalog import tenants
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import ApiKey, Tenant
from hmi_control_plane.http.parameters import Name

_CREATED = 201
_NO_CONTENT = 204


def build(database: Database, forget_key: Callable[[str], None]) -> APIRouter:
    """Return the routes under ``/tenants``, and ``/deleted-tenants``.

    ``forget_key`` is called with each revoked key.
    """
    router = APIRouter(prefix="/tenants")
    _add_tenants(router, database, forget_key)
    _add_keys(router, database, forget_key)
    both = APIRouter()
    both.include_router(router)
    _add_deleted_tenants(both, database)
    return both


def _add_tenants(router: APIRouter, database: Database, forget_key: Callable[[str], None]) -> None:
    @router.post("", status_code=_CREATED)
    def create_tenant(wanted: TenantCreate) -> TenantBody:
        """Create a tenant; 409 if the name is taken."""
        with database.write() as session:
            return _tenant_body(tenants.create_tenant(session, wanted.name, wanted.display_name))

    @router.get("")
    def list_tenants(limit: Limit = 100, cursor: Cursor = None) -> Listing[TenantBody]:
        """List tenants by name."""
        with database.read() as session:
            page = tenants.list_tenants(session, limit=limit, cursor=cursor)
            return listing(page.map(_tenant_body))

    @router.get("/{tenant}")
    def read_tenant(tenant: Name) -> TenantBody:
        """Read a tenant."""
        with database.read() as session:
            return _tenant_body(tenants.get_tenant(session, tenant))

    @router.patch("/{tenant}")
    def update_tenant(tenant: Name, change: TenantUpdate) -> TenantBody:
        """Change a tenant's display name."""
        with database.write() as session:
            row = tenants.get_tenant(session, tenant)
            row.display_name = change.display_name
            return _tenant_body(row)

    @router.delete("/{tenant}", status_code=_NO_CONTENT)
    def delete_tenant(tenant: Name) -> Response:
        """Delete a tenant and its keys; 409 while it has Domains or TaskAdapters.

        Its usage and invoices stay, under its id. A tenant that is created with this name later is different.
        """
        with database.write() as session:
            key_ids = tenants.delete_tenant(session, tenant)
        for key_id in key_ids:
            forget_key(key_id)
        return Response(status_code=_NO_CONTENT)


def _add_keys(router: APIRouter, database: Database, forget_key: Callable[[str], None]) -> None:
    @router.post("/{tenant}/keys", status_code=_CREATED)
    def create_key(tenant: Name, wanted: KeyCreate) -> KeyCreated:
        """Create an API key; only this response contains it."""
        with database.write() as session:
            row, made = tenants.create_key(session, tenant, wanted.name)
            return KeyCreated(**dict(_key_body(row)), key=made.token)

    @router.get("/{tenant}/keys")
    def list_keys(tenant: Name, limit: Limit = 100, cursor: Cursor = None) -> Listing[KeyBody]:
        """List a tenant's keys, revoked ones too."""
        with database.read() as session:
            page = tenants.list_keys(session, tenant, limit=limit, cursor=cursor)
            return listing(page.map(_key_body))

    @router.delete("/{tenant}/keys/{key_id}", status_code=_NO_CONTENT)
    def revoke_key(tenant: Name, key_id: str) -> Response:
        """Revoke a key; it stops working within seconds."""
        with database.write() as session:
            tenants.revoke_key(session, tenant, key_id)
        forget_key(key_id)
        return Response(status_code=_NO_CONTENT)


def _add_deleted_tenants(router: APIRouter, database: Database) -> None:
    @router.get("/deleted-tenants")
    def list_deleted_tenants(limit: Limit = 100, cursor: Cursor = None) -> Listing[DeletedTenantBody]:
        """List deleted tenants by id; their usage, bills and invoices can be read by that id."""
        with database.read() as session:
            page = tenants.list_deleted_tenants(session, limit=limit, cursor=cursor)
            return listing(
                page.map(
                    lambda row: DeletedTenantBody(
                        id=row.id,
                        name=row.name,
                        display_name=row.display_name,
                        created_at=row.created_at,
                        deleted_at=row.deleted_at,
                    )
                )
            )


def _tenant_body(row: Tenant) -> TenantBody:
    return TenantBody(id=row.id, name=row.name, display_name=row.display_name, created_at=row.created_at)


def _key_body(row: ApiKey) -> KeyBody:
    return KeyBody(
        id=row.id,
        tenant=row.tenant,
        tenant_id=row.tenant_id,
        name=row.name,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        last_used_on=row.last_used_on,
    )
