"""The catalog: tenants, keys, resources, versions, runs, runtimes and placements.

Revision: 0001. Follows: nothing.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

_TIME = sa.DateTime(timezone=True)
_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("refcount", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("orphaned_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_artifacts")),
    )
    op.create_index(op.f("ix_artifacts_orphaned_at"), "artifacts", ["orphaned_at"])
    op.create_table(
        "runtimes",
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("device", sa.String(length=200), nullable=False),
        sa.Column("capacity_bytes", sa.BigInteger(), nullable=False),
        sa.Column("incarnation", sa.String(length=64), nullable=False),
        sa.Column("registered_at", _TIME, nullable=False),
        sa.Column("heartbeat_at", _TIME, nullable=False),
        sa.Column("free_bytes", sa.BigInteger(), nullable=False),
        sa.Column("queue_depth", sa.Integer(), nullable=False),
        sa.Column("resident", _JSON, nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("lost", sa.Boolean(), nullable=False),
        sa.Column("placed_bytes", sa.BigInteger(), nullable=False),
        sa.Column("desired_revision", sa.BigInteger(), nullable=False),
        sa.Column("forgotten_revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runtimes")),
    )
    op.create_index(op.f("ix_runtimes_heartbeat_at"), "runtimes", ["heartbeat_at"])
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("display_name", sa.String(length=200), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_tenants")),
    )
    op.create_table(
        "adapters",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("namespace", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("uid", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("spec_digest", sa.String(length=80), nullable=False),
        sa.Column("domain", sa.String(length=127), nullable=False),
        sa.Column("task_type", sa.String(length=32), nullable=False),
        sa.Column("replicas", sa.Integer(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("current_version", sa.Integer(), nullable=True),
        sa.Column("missing_replicas", sa.Integer(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_adapters_tenant_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapters")),
        sa.UniqueConstraint("namespace", "name", name=op.f("uq_adapters_namespace_name")),
        sa.UniqueConstraint("tenant", "name", name=op.f("uq_adapters_tenant_name")),
    )
    op.create_index(op.f("ix_adapters_domain_id"), "adapters", ["domain", "id"])
    op.create_index(op.f("ix_adapters_tenant_id"), "adapters", ["tenant", "id"])
    op.create_index(op.f("ix_adapters_missing_replicas_id"), "adapters", ["missing_replicas", "id"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("revoked_at", _TIME, nullable=True),
        sa.Column("last_used_on", sa.Date(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant"], ["tenants.name"], name=op.f("fk_api_keys_tenant_tenants"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_index(op.f("ix_api_keys_tenant"), "api_keys", ["tenant"])
    op.create_table(
        "domains",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("namespace", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("key", sa.String(length=127), nullable=False),
        sa.Column("uid", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("spec_digest", sa.String(length=80), nullable=False),
        sa.Column("base_uri", sa.Text(), nullable=False),
        sa.Column("parent", sa.String(length=127), nullable=True),
        sa.Column("current_version", sa.Integer(), nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_domains_tenant_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_domains")),
        sa.UniqueConstraint("key", name=op.f("uq_domains_key")),
        sa.UniqueConstraint("namespace", "name", name=op.f("uq_domains_namespace_name")),
    )
    op.create_index(op.f("ix_domains_tenant_key"), "domains", ["tenant", "key"])
    op.create_table(
        "training_runs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("uid", sa.String(length=64), nullable=False),
        sa.Column("spec_digest", sa.String(length=80), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("namespace", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("progress", _JSON, nullable=True),
        sa.Column("result", _JSON, nullable=True),
        sa.Column("failure", _JSON, nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_training_runs_tenant_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_runs")),
        sa.UniqueConstraint(
            "uid", "spec_digest", "attempt", name=op.f("uq_training_runs_uid_spec_digest_attempt")
        ),
    )
    op.create_index(op.f("ix_training_runs_tenant_id"), "training_runs", ["tenant", "id"])
    op.create_table(
        "adapter_versions",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("adapter_id", _ROW_ID, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("spec_digest", sa.String(length=80), nullable=False),
        sa.Column("artifact_digest", sa.String(length=80), nullable=True),
        sa.Column("layers_digest", sa.String(length=80), nullable=False),
        sa.Column("labels", _JSON, nullable=False),
        sa.Column("metrics", _JSON, nullable=False),
        sa.Column("gate_passed", sa.Boolean(), nullable=False),
        sa.Column("gate_message", sa.Text(), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"],
            ["adapters.id"],
            name=op.f("fk_adapter_versions_adapter_id_adapters"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["artifact_digest"],
            ["artifacts.digest"],
            name=op.f("fk_adapter_versions_artifact_digest_artifacts"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapter_versions")),
        sa.UniqueConstraint("adapter_id", "version", name=op.f("uq_adapter_versions_adapter_id_version")),
    )
    op.create_index(op.f("ix_adapter_versions_artifact_digest"), "adapter_versions", ["artifact_digest"])
    op.create_table(
        "domain_versions",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("domain_id", _ROW_ID, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("spec_digest", sa.String(length=80), nullable=False),
        sa.Column("base_uri", sa.Text(), nullable=False),
        sa.Column("base_revision", sa.Text(), nullable=True),
        sa.Column("base_digest", sa.String(length=80), nullable=False),
        sa.Column("split", sa.Integer(), nullable=False),
        sa.Column("layers_digest", sa.String(length=80), nullable=False),
        sa.Column("on_miss", sa.String(length=16), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("coverage", sa.Double(), nullable=False),
        sa.Column("metrics", _JSON, nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["domain_id"],
            ["domains.id"],
            name=op.f("fk_domain_versions_domain_id_domains"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["layers_digest"], ["artifacts.digest"], name=op.f("fk_domain_versions_layers_digest_artifacts")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_domain_versions")),
        sa.UniqueConstraint("domain_id", "version", name=op.f("uq_domain_versions_domain_id_version")),
    )
    op.create_index(
        op.f("ix_domain_versions_domain_id_layers_digest_version"),
        "domain_versions",
        ["domain_id", "layers_digest", "version"],
    )
    op.create_index(op.f("ix_domain_versions_layers_digest"), "domain_versions", ["layers_digest"])
    op.create_table(
        "residency",
        sa.Column("runtime_id", sa.String(length=128), nullable=False),
        sa.Column("adapter_id", _ROW_ID, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=100), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_residency_adapter_id_adapters"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["runtime_id"], ["runtimes.id"], name=op.f("fk_residency_runtime_id_runtimes"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("runtime_id", "adapter_id", "version", name=op.f("pk_residency")),
    )
    op.create_index(op.f("ix_residency_adapter_id"), "residency", ["adapter_id"])
    op.create_table(
        "domain_placements",
        sa.Column("runtime_id", sa.String(length=128), nullable=False),
        sa.Column("domain_version_id", _ROW_ID, nullable=False),
        sa.Column("adapters", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["domain_version_id"],
            ["domain_versions.id"],
            name=op.f("fk_domain_placements_domain_version_id_domain_versions"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["runtime_id"],
            ["runtimes.id"],
            name=op.f("fk_domain_placements_runtime_id_runtimes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("runtime_id", "domain_version_id", name=op.f("pk_domain_placements")),
    )
    op.create_index(
        op.f("ix_domain_placements_domain_version_id"), "domain_placements", ["domain_version_id"]
    )
    op.create_index(
        op.f("ix_domain_placements_runtime_id_revision"), "domain_placements", ["runtime_id", "revision"]
    )
    op.create_table(
        "domain_version_tables",
        sa.Column("domain_version_id", _ROW_ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("artifact_digest", sa.String(length=80), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_digest"],
            ["artifacts.digest"],
            name=op.f("fk_domain_version_tables_artifact_digest_artifacts"),
        ),
        sa.ForeignKeyConstraint(
            ["domain_version_id"],
            ["domain_versions.id"],
            name=op.f("fk_domain_version_tables_domain_version_id_domain_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("domain_version_id", "position", name=op.f("pk_domain_version_tables")),
    )
    op.create_index(
        op.f("ix_domain_version_tables_artifact_digest"), "domain_version_tables", ["artifact_digest"]
    )
    op.create_table(
        "placements",
        sa.Column("runtime_id", sa.String(length=128), nullable=False),
        sa.Column("adapter_key", sa.String(length=127), nullable=False),
        sa.Column("adapter_id", _ROW_ID, nullable=True),
        sa.Column("domain_version_id", _ROW_ID, nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"],
            ["adapters.id"],
            name=op.f("fk_placements_adapter_id_adapters"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["domain_version_id"],
            ["domain_versions.id"],
            name=op.f("fk_placements_domain_version_id_domain_versions"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["runtime_id"],
            ["runtimes.id"],
            name=op.f("fk_placements_runtime_id_runtimes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("runtime_id", "adapter_key", name=op.f("pk_placements")),
    )
    op.create_index(op.f("ix_placements_adapter_id"), "placements", ["adapter_id"])
    op.create_index(op.f("ix_placements_domain_version_id"), "placements", ["domain_version_id"])
    op.create_index(op.f("ix_placements_runtime_id_revision"), "placements", ["runtime_id", "revision"])
    op.create_index(
        "ix_placements_removed",
        "placements",
        ["runtime_id", "revision"],
        sqlite_where=sa.text("adapter_id IS NULL"),
        postgresql_where=sa.text("adapter_id IS NULL"),
    )


def downgrade() -> None:
    """Drop the tables, and their indexes with them."""
    op.drop_table("placements")
    op.drop_table("domain_version_tables")
    op.drop_table("domain_placements")
    op.drop_table("residency")
    op.drop_table("domain_versions")
    op.drop_table("adapter_versions")
    op.drop_table("training_runs")
    op.drop_table("domains")
    op.drop_table("api_keys")
    op.drop_table("adapters")
    op.drop_table("tenants")
    op.drop_table("runtimes")
    op.drop_table("artifacts")
