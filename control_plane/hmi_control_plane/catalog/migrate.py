"""Alembic migrations, run from Python: bring a database to a revision."""

from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from hmi_control_plane.catalog.database import Database, normalised_url


def config(url: str) -> Config:
    """Return Alembic's configuration for the packaged migrations, without an ini file."""
    settings = Config()
    settings.set_main_option("script_location", str(files("hmi_control_plane.catalog") / "migrations"))
    settings.set_main_option("path_separator", "os")
    # The address is passed as an attribute: in an option its percent signs would be interpolated.
    settings.attributes["url"] = normalised_url(url)
    return settings


def upgrade(url: str, revision: str = "head") -> None:
    """Upgrade the database to ``revision``; does nothing when it is there already."""
    command.upgrade(config(url), revision)


def is_behind(database: Database) -> bool:
    """Return whether the database must be upgraded before this version of HMI can use it.

    A revision that this version does not know is newer. The database is then not behind: during an upgrade
    the processes of the old version must keep running. Raises sqlalchemy.exc.SQLAlchemyError.
    """
    with database.engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(config(database.url))
    known = {script.revision for script in scripts.walk_revisions()}
    return current is None or (current in known and current != scripts.get_current_head())
