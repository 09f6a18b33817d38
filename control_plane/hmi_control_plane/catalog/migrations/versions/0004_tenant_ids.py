"""Tenants get ids that are never used again; keys, usage and invoices are bound to them.

Usage and invoices from before a tenant was made belong to an earlier tenant of that name, which was deleted;
such tenants get a row in ``deleted_tenants``. What an invoice bills is not changed.

Revision: 0004. Follows: 0003.
"""

import secrets
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

_TIME = sa.DateTime(timezone=True)
_NOT_VOID = sa.text("state <> 'void'")
_BOUND = ("tenants.id", "api_keys.tenant_id", "usage_events.tenant_id", "invoices.tenant_id")

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the ids, find out whose each row is, and index by them."""
    op.create_table(
        "deleted_tenants",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("display_name", sa.String(length=200), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("deleted_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deleted_tenants")),
    )
    op.create_index(op.f("ix_deleted_tenants_name"), "deleted_tenants", ["name"])
    for place in _BOUND:
        table, column = place.split(".")
        op.add_column(table, sa.Column(column, sa.String(length=32), nullable=False, server_default=""))
    _bind_present_tenants()
    _bind_deleted_tenants()
    if op.get_bind().dialect.name != "sqlite":  # where a column without a default cannot be added
        for place in _BOUND:
            table, column = place.split(".")
            op.alter_column(table, column, server_default=None)
    op.create_index(op.f("ix_tenants_id"), "tenants", ["id"], unique=True)
    op.drop_index(op.f("ix_usage_events_tenant_time"), table_name="usage_events")
    op.create_index(op.f("ix_usage_events_tenant_id_time"), "usage_events", ["tenant_id", "time"])
    op.drop_index(op.f("ix_invoices_tenant"), table_name="invoices")
    op.create_index(op.f("ix_invoices_tenant_id"), "invoices", ["tenant_id"])
    _index_live_periods("tenant_id")


def downgrade() -> None:
    """Remove the ids; who was deleted is forgotten."""
    _index_live_periods("tenant")
    op.drop_index(op.f("ix_invoices_tenant_id"), table_name="invoices")
    op.create_index(op.f("ix_invoices_tenant"), "invoices", ["tenant"])
    op.drop_index(op.f("ix_usage_events_tenant_id_time"), table_name="usage_events")
    op.create_index(op.f("ix_usage_events_tenant_time"), "usage_events", ["tenant", "time"])
    op.drop_index(op.f("ix_tenants_id"), table_name="tenants")
    for place in _BOUND:
        table, column = place.split(".")
        op.drop_column(table, column)
    op.drop_table("deleted_tenants")


def _index_live_periods(owner: str) -> None:
    op.drop_index("uq_invoices_live_period", table_name="invoices")
    op.create_index(
        "uq_invoices_live_period",
        "invoices",
        [owner, "currency", "period_start", "period_end"],
        unique=True,
        sqlite_where=_NOT_VOID,
        postgresql_where=_NOT_VOID,
    )


def _bind_present_tenants() -> None:
    """Bind to a tenant what came after it was made, and an invoice only when no earlier use can be in it."""
    connection = op.get_bind()
    for name in connection.scalars(sa.text("SELECT name FROM tenants")).all():
        connection.execute(
            sa.text("UPDATE tenants SET id = :id WHERE name = :name"), {"id": _new_id(), "name": name}
        )
    for statement in (
        "UPDATE api_keys SET tenant_id = (SELECT id FROM tenants WHERE name = api_keys.tenant)",
        "UPDATE usage_events SET tenant_id = coalesce((SELECT id FROM tenants WHERE "
        "tenants.name = usage_events.tenant AND tenants.created_at <= usage_events.time), '')",
        "UPDATE invoices SET tenant_id = coalesce((SELECT id FROM tenants WHERE "
        "tenants.name = invoices.tenant AND tenants.created_at <= invoices.created_at "
        "AND tenants.created_at < invoices.period_end), '')",
        "UPDATE invoices SET tenant_id = '' WHERE EXISTS (SELECT 1 FROM usage_events WHERE "
        "usage_events.tenant = invoices.tenant AND usage_events.tenant_id = '' "
        "AND usage_events.time >= invoices.period_start AND usage_events.time < invoices.period_end)",
    ):
        connection.execute(sa.text(statement))


def _bind_deleted_tenants() -> None:
    """Make a deleted tenant of each name that unbound usage or invoices have, and bind them to it."""
    connection = op.get_bind()
    unbound = sa.text(
        "SELECT name, min(began) AS began FROM ("
        "SELECT tenant AS name, min(time) AS began FROM usage_events WHERE tenant_id = '' GROUP BY tenant "
        "UNION ALL "
        "SELECT tenant AS name, min(period_start) AS began FROM invoices WHERE tenant_id = '' GROUP BY tenant"
        ") AS unbound GROUP BY name"
    ).columns(sa.column("name", sa.String), sa.column("began", _TIME))
    present = sa.text("SELECT name, created_at FROM tenants").columns(
        sa.column("name", sa.String), sa.column("created_at", _TIME)
    )
    made = {row.name: _aware(row.created_at) for row in connection.execute(present)}
    insert = sa.text(
        "INSERT INTO deleted_tenants (id, name, display_name, created_at, deleted_at) "
        "VALUES (:id, :name, '', :created_at, :deleted_at)"
    ).bindparams(sa.bindparam("created_at", type_=_TIME), sa.bindparam("deleted_at", type_=_TIME))
    for name, began in connection.execute(unbound).all():
        deleted_at = made.get(name, datetime.now(UTC))
        row = {"id": _new_id(), "name": name, "created_at": min(_aware(began), deleted_at)}
        connection.execute(insert, {**row, "deleted_at": deleted_at})
        for table in ("usage_events", "invoices"):
            connection.execute(
                sa.text(f"UPDATE {table} SET tenant_id = :id WHERE tenant = :name AND tenant_id = ''"),  # noqa: S608
                {"id": row["id"], "name": name},
            )


def _aware(moment: datetime) -> datetime:
    """Return the moment with its zone, which SQLite does not keep."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _new_id() -> str:
    return f"tenant_{secrets.token_hex(8)}"
