"""Tenants and their API keys."""

from datetime import datetime

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from hmi_api.names import TENANT_LABEL
from hmi_control_plane.auth.authenticator import NewKey, new_key
from hmi_control_plane.catalog.cursors import TEXT_CURSOR, decode_cursor
from hmi_control_plane.catalog.database import insert_missing
from hmi_control_plane.catalog.paging import Page, page_of
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    ApiKey,
    DeletedTenant,
    DomainRow,
    Tenant,
    TrainingRun,
    new_tenant_id,
)
from hmi_control_plane.catalog.times import now
from hmi_control_plane.http.errors import Conflict, NotFound


def ensure_tenant(session: Session, name: str) -> Tenant:
    """Return the tenant, made now if it is new; two that make it at once both succeed."""
    tenant = session.get(Tenant, name)
    if tenant is None:
        row = {"name": name, "id": new_tenant_id(), "display_name": "", "created_at": now()}
        insert_missing(session, Tenant, [row])
        tenant = session.get_one(Tenant, name)
    return tenant


def create_tenant(session: Session, name: str, display_name: str) -> Tenant:
    """Make a tenant; raises Conflict (TenantExists)."""
    if session.get(Tenant, name) is not None:
        raise Conflict("TenantExists", f"There is a tenant {name} already; choose another name.")
    tenant = Tenant(name=name, display_name=display_name, created_at=now())
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
    return NotFound("UnknownTenant", f"There is no tenant {name}; make it first.")


def tenant_changed(what: str, namespace: str, before: str, after: str) -> str:
    """Return the message for a resource whose namespace has become another tenant's."""
    return (
        f"{what} belongs to tenant {before}, but namespace {namespace} is tenant {after}'s now, by its label "
        f"{TENANT_LABEL} (its own name without one). Set the label to {before}, or delete {what} and apply "
        "it again."
    )


def find_account(session: Session, name_or_id: str) -> Tenant | DeletedTenant:
    """Return the tenant whose usage and invoices are asked for, a deleted one too.

    A name means the tenant that has it now, else the one that had it last. Raises NotFound (UnknownTenant).
    """
    if is_tenant_id(name_or_id):
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


def is_tenant_id(name_or_id: str) -> bool:
    """Say whether this is the form of a tenant's id; no name holds an underscore."""
    return "_" in name_or_id


def list_tenants(session: Session, *, limit: int, cursor: str | None) -> Page[Tenant]:
    """Return tenants by name."""
    query = select(Tenant).order_by(Tenant.name).limit(limit + 1)
    after = decode_cursor(cursor, TEXT_CURSOR)
    if after is not None:
        query = query.where(Tenant.name > after)
    return page_of(session.scalars(query).all(), limit, lambda tenant: tenant.name)


def list_deleted_tenants(session: Session, *, limit: int, cursor: str | None) -> Page[DeletedTenant]:
    """Return deleted tenants by id."""
    query = select(DeletedTenant).order_by(DeletedTenant.id).limit(limit + 1)
    after = decode_cursor(cursor, TEXT_CURSOR)
    if after is not None:
        query = query.where(DeletedTenant.id > after)
    return page_of(session.scalars(query).all(), limit, lambda tenant: tenant.id)


def delete_tenant(session: Session, name: str) -> list[str]:
    """Remove a tenant, its keys and its runs; idempotent. Its usage and invoices stay, under its id.

    A tenant of this name that is made later is another one and sees nothing of them.

    Returns the ids of the keys that are no longer valid. Raises Conflict (TenantInUse) while it has domains
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
            deleted_at=now(),
        )
    )
    session.delete(tenant)
    return list(key_ids)


def create_key(session: Session, tenant: str, name: str) -> tuple[ApiKey, NewKey]:
    """Make an API key of a tenant; the token in the second result can be shown now and never again."""
    # Locked: deleted and made anew meanwhile, the name would be another tenant's, and this key of neither.
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
        created_at=now(),
        revoked_at=None,
    )
    session.add(row)
    session.flush()
    return row, made


def list_keys(session: Session, tenant: str, *, limit: int, cursor: str | None) -> Page[ApiKey]:
    """Return a tenant's keys by id, revoked ones too."""
    get_tenant(session, tenant)
    query = select(ApiKey).where(ApiKey.tenant == tenant).order_by(ApiKey.id).limit(limit + 1)
    after = decode_cursor(cursor, TEXT_CURSOR)
    if after is not None:
        query = query.where(ApiKey.id > after)
    return page_of(session.scalars(query).all(), limit, lambda key: key.id)


def revoke_key(session: Session, tenant: str, key_id: str, at: datetime | None = None) -> None:
    """Make a key invalid from now on; idempotent. Raises NotFound (UnknownKey)."""
    key = session.get(ApiKey, key_id)
    if key is None or key.tenant != tenant:
        raise NotFound("UnknownKey", f"Tenant {tenant} has no key {key_id}.")
    key.revoked_at = key.revoked_at or at or now()
