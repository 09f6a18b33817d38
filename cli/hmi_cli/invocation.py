"""How the user calls this command, so that what we tell them to type works where they are."""

import shlex
import shutil
import sys
from pathlib import Path


def called_as(home: Path | None = None) -> str:
    """Return ``hmi`` where it is on the path, else the way to it; ``--home`` where it is not the default."""
    name = "hmi"
    called = Path(sys.argv[0])
    if shutil.which(name) is None and called.name == name:
        name = str(called.relative_to(Path.cwd()) if called.is_relative_to(Path.cwd()) else called)
    name = shlex.quote(name)
    return name if home in (None, Path(".hmi")) else f"{name} --home {shlex.quote(str(home))}"
