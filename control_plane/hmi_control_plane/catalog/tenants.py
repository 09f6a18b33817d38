"""Tenants and their API keys."""

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from hmi_api.names import TENANT_LABEL
from hmi_control_plane.auth.authenticator import NewKey, new_key
from hmi_control_plane.catalog.database import insert_missing, utc_now
from hmi_control_plane.catalog.paging import Page, PageRequest, list_page
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    ApiKey,
    DeletedTenant,
    DomainRow,
    Tenant,
    TrainingRun,
    new_tenant_id,
)
from hmi_control_plane.http.errors import Conflict, NotFound


def ensure_tenant(session: Session, name: str) -> Tenant:
    """Return the tenant; create it if it is new. Concurrent calls all succeed."""
    tenant = session.get(Tenant, name)
    if tenant is None:
        row = {"name": name, "id": new_tenant_id(), "display_name": "", "created_at": utc_now()}
        insert_missing(session, Tenant, [row])
        tenant = session.get_one(Tenant, name)
    return tenant


def create_tenant(session: Session, name: str, display_name: str) -> Tenant:
    """Create a tenant; raises Conflict (TenantExists)."""
    if session.get(Tenant, name) is not None:
        raise Conflict("TenantExists", f"There is a tenant {name} already; choose another name.")
    tenant = Tenant(name=name, display_name=display_name, created_at=utc_now())
    session.add(tenant)
    session.flush()
    return tenant


def get_tenant(session: Session, name: str) -> Tenant:
    """Return the tenant; raises NotFound (UnknownTenant)."""
    tenant = session.get(Tenant, name)
    if tenant is None:
        raise _unknown_tenant(name)
    return tenant


def _unknown_tenant(name: str) -> NotFound:
    return NotFound("UnknownTenant", f"There is no tenant {name}; create it first.")


def require_same_tenant(what: str, namespace: str, before: str, after: str) -> None:
    """Raise Conflict (TenantChanged) for a resource whose namespace belongs to another tenant now."""
    if before != after:
        raise Conflict(
            "TenantChanged",
            f"{what} belongs to tenant {before}, but namespace {namespace} belongs to tenant {after} now, by "
            f"its label {TENANT_LABEL} (without the label: by its own name). Set the label to {before}, or "
            f"delete {what} and apply it again.",
        )


def find_billed_tenant(session: Session, name_or_id: str) -> Tenant | DeletedTenant:
    """Return a tenant by name or id, a deleted one too, to read its usage and invoices.

    A name means the tenant that has it now, otherwise the tenant that had it last. Raises NotFound
    (UnknownTenant).
    """
    if "_" in name_or_id:  # an id; no name contains an underscore
        found = session.scalar(select(Tenant).where(Tenant.id == name_or_id)) or session.get(
            DeletedTenant, name_or_id
        )
    else:
        found = session.get(Tenant, name_or_id) or session.scalar(
            select(DeletedTenant)
            .where(DeletedTenant.name == name_or_id)
            .order_by(DeletedTenant.deleted_at.desc(), DeletedTenant.id)
            .limit(1)
        )
    if found is None:
        raise NotFound("UnknownTenant", f"There is no tenant {name_or_id}, and none was deleted.")
    return found


def delete_tenant(session: Session, name: str) -> list[str]:
    """Delete a tenant, its keys and its runs; idempotent. Its usage and invoices stay, under its id.

    A tenant that is created with this name later is a different one and cannot see them.

    Return the ids of the keys that are no longer valid. Raises Conflict (TenantInUse) while it has domains
    or adapters.
    """
    tenant = session.get(Tenant, name, with_for_update=True)
    if tenant is None:
        return []
    has_domains = session.scalar(select(exists().where(DomainRow.tenant == name)))
    has_adapters = session.scalar(select(exists().where(AdapterRow.tenant == name)))
    if has_domains or has_adapters:
        raise Conflict("TenantInUse", f"Delete the Domains and TaskAdapters of {name} first.")
    session.execute(delete(TrainingRun).where(TrainingRun.tenant == name))
    key_ids = session.scalars(delete(ApiKey).where(ApiKey.tenant == name).returning(ApiKey.id)).all()
    session.add(
        DeletedTenant(
            id=tenant.id,
            name=tenant.name,
            display_name=tenant.display_name,
            created_at=tenant.created_at,
            deleted_at=utc_now(),
        )
    )
    session.delete(tenant)
    return list(key_ids)


def create_key(session: Session, tenant: str, name: str) -> tuple[ApiKey, NewKey]:
    """Create an API key; the token in the second result cannot be read again later."""
    # The lock keeps the tenant from being deleted, and its name from being reused, at the same time.
    owner = session.get(Tenant, tenant, with_for_update={"read": True, "key_share": True})
    if owner is None:
        raise _unknown_tenant(tenant)
    made = new_key()
    row = ApiKey(
        id=made.id,
        tenant=owner.name,
        tenant_id=owner.id,
        name=name,
        secret_hash=made.secret_hash,
        created_at=utc_now(),
        revoked_at=None,
    )
    session.add(row)
    session.flush()
    return row, made


def list_keys(session: Session, tenant: str, page: PageRequest) -> Page[ApiKey]:
    """Return a tenant's keys by id, revoked ones too."""
    get_tenant(session, tenant)
    return list_page(session, ApiKey, ApiKey.id, page, tenant=tenant)


def revoke_key(session: Session, tenant: str, key_id: str) -> None:
    """Revoke a key now; idempotent. Raises NotFound (UnknownKey)."""
    key = session.get(ApiKey, key_id)
    if key is None or key.tenant != tenant:
        raise NotFound("UnknownKey", f"Tenant {tenant} has no key {key_id}.")
    key.revoked_at = key.revoked_at or utc_now()
