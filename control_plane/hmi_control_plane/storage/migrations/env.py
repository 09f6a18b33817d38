"""Alembic's environment: connects to the address that ``storage.migrate`` passes and runs the revisions."""

from alembic import context
from sqlalchemy import create_engine, pool

from hmi_control_plane.storage import Base


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
            context.run_migrations()


run()
