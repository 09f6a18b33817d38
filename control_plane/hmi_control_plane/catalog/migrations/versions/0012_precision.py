"""The precision that runtimes compute in, and the choices that pools have recorded.

Revision: 0012. Follows: 0011.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_KEY = ("pool", "requested", "base_digest", "split", "processor")


def upgrade() -> None:
    """Make the table and add the columns; runtimes fill them with their next report."""
    op.create_table(
        "precision_choices",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("pool", sa.String(length=63), nullable=False),
        sa.Column("requested", sa.String(length=100), nullable=False),
        sa.Column("base_digest", sa.String(length=80), nullable=False),
        sa.Column("split", sa.Integer(), nullable=False),
        sa.Column("processor", sa.String(length=400), nullable=False),
        sa.Column("choice", _JSON, nullable=False),
        sa.Column("runtime_id", sa.String(length=128), nullable=False),
        sa.Column("chosen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_precision_choices")),
        sa.UniqueConstraint(*_KEY, name=op.f(f"uq_precision_choices_{'_'.join(_KEY)}")),
    )
    op.add_column("runtimes", sa.Column("pool", sa.String(length=63), nullable=False, server_default=""))
    op.add_column("runtimes", sa.Column("processor", sa.Text(), nullable=False, server_default=""))
    op.add_column("runtimes", sa.Column("engines", _JSON, nullable=False, server_default="[]"))


def downgrade() -> None:
    """Remove them."""
    for column in ("engines", "processor", "pool"):
        op.drop_column("runtimes", column)
    op.drop_table("precision_choices")
