"""Alembic's environment: connects to the address that ``storage.migrate`` passes and runs the revisions."""

from alembic import context
from sqlalchemy import create_engine, pool, text

from hmi_control_plane.storage import Base

_LOCK_ID = 0x484D494D  # any constant of our own


def run() -> None:
    """Run the requested revisions in one transaction."""
    engine = create_engine(context.config.attributes["url"], poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=connection.dialect.name == "sqlite",
            compare_type=True,
        )
        with context.begin_transaction():
            if connection.dialect.name == "postgresql":
                # Several processes may start at once; the others then find nothing left to do.
                connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _LOCK_ID})
            context.run_migrations()


run()
