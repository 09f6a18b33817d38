"""Tenants and their keys."""

from collections.abc import Callable

from fastapi import APIRouter

from hmi_control_plane.api import NO_CONTENT
from hmi_control_plane.api.admin.schemas import (
    DeletedTenantBody,
    KeyBody,
    KeyCreate,
    KeyCreated,
    Listing,
    Paging,
    TenantBody,
    TenantCreate,
    TenantUpdate,
    listing,
)
from hmi_control_plane.catalog import tenants
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.paging import list_page
from hmi_control_plane.catalog.tables import DeletedTenant, Tenant
from hmi_control_plane.http.parameters import Name

_CREATED = 201


def build(database: Database, forget_key: Callable[[str], None]) -> APIRouter:
    """Return the routes under ``/tenants``, and ``/deleted-tenants``.

    ``forget_key`` is called with each revoked key.
    """
    router = APIRouter()
    _add_tenants(router, database, forget_key)
    _add_keys(router, database, forget_key)
    _add_deleted_tenants(router, database)
    return router


def _add_tenants(router: APIRouter, database: Database, forget_key: Callable[[str], None]) -> None:
    @router.post("/tenants", status_code=_CREATED)
    def create_tenant(wanted: TenantCreate) -> TenantBody:
        """Create a tenant; 409 if the name is taken."""
        with database.write() as session:
            return TenantBody.model_validate(tenants.create_tenant(session, wanted.name, wanted.display_name))

    @router.get("/tenants")
    def list_tenants(page: Paging) -> Listing[TenantBody]:
        """List tenants by name."""
        with database.read() as session:
            return listing(list_page(session, Tenant, Tenant.name, page), TenantBody.model_validate)

    @router.get("/tenants/{tenant}")
    def read_tenant(tenant: Name) -> TenantBody:
        """Read a tenant."""
        with database.read() as session:
            return TenantBody.model_validate(tenants.get_tenant(session, tenant))

    @router.patch("/tenants/{tenant}")
    def update_tenant(tenant: Name, change: TenantUpdate) -> TenantBody:
        """Change a tenant's display name."""
        with database.write() as session:
            row = tenants.get_tenant(session, tenant)
            row.display_name = change.display_name
            return TenantBody.model_validate(row)

    @router.delete("/tenants/{tenant}", **NO_CONTENT)
    def delete_tenant(tenant: Name) -> None:
        """Delete a tenant and its keys; 409 while it has Domains or TaskAdapters.

        Its usage and invoices stay, under its id. A tenant that is created with this name later is different.
        """
        with database.write() as session:
            key_ids = tenants.delete_tenant(session, tenant)
        for key_id in key_ids:
            forget_key(key_id)


def _add_keys(router: APIRouter, database: Database, forget_key: Callable[[str], None]) -> None:
    @router.post("/tenants/{tenant}/keys", status_code=_CREATED)
    def create_key(tenant: Name, wanted: KeyCreate) -> KeyCreated:
        """Create an API key; only this response contains it."""
        with database.write() as session:
            row, made = tenants.create_key(session, tenant, wanted.name)
            return KeyCreated(**dict(KeyBody.model_validate(row)), key=made.token)

    @router.get("/tenants/{tenant}/keys")
    def list_keys(tenant: Name, page: Paging) -> Listing[KeyBody]:
        """List a tenant's keys, revoked ones too."""
        with database.read() as session:
            return listing(tenants.list_keys(session, tenant, page), KeyBody.model_validate)

    @router.delete("/tenants/{tenant}/keys/{key_id}", **NO_CONTENT)
    def revoke_key(tenant: Name, key_id: str) -> None:
        """Revoke a key; it stops working within seconds."""
        with database.write() as session:
            tenants.revoke_key(session, tenant, key_id)
        forget_key(key_id)


def _add_deleted_tenants(router: APIRouter, database: Database) -> None:
    @router.get("/deleted-tenants")
    def list_deleted_tenants(page: Paging) -> Listing[DeletedTenantBody]:
        """List deleted tenants by id; their usage, bills and invoices can be read by that id."""
        with database.read() as session:
            return listing(
                list_page(session, DeletedTenant, DeletedTenant.id, page), DeletedTenantBody.model_validate
            )
