"""A real control plane and resource store for the command, without training and serving."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parent))  # the helper beside this file

from served_command import Run, Served

from hmi_cli.main import main
from hmi_cli.system.home import HomeFolder
from hmi_cli.system.server import listen, url_of
from hmi_control_plane.app import create_app
from hmi_control_plane.auth.guards import require_token
from hmi_control_plane.settings import Settings
from hmi_operator.embedded import FileResourceStore, router


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server over a home folder, as `hmi up` has it, without reconciler and runtime."""
    home = HomeFolder(tmp_path_factory.mktemp("served") / "home")
    home.create()
    listener = listen("127.0.0.1", 0)
    store = FileResourceStore(home.resources)
    server = uvicorn.Server(uvicorn.Config(_app(home, store), log_config=None, timeout_graceful_shutdown=1))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=[server.serve(sockets=[listener])])
    thread.start()
    # A bound socket accepts connections only once the server has started; until then clients wait.
    listener.listen()
    home.write_url(url_of(listener))
    yield Served(home, url_of(listener), store, loop)
    server.should_exit = True
    thread.join()
    loop.close()
    listener.close()


def _app(home: HomeFolder, store: FileResourceStore) -> FastAPI:
    admin_key = SecretStr(home.admin_key())
    app = create_app(
        Settings(
            database_url=f"sqlite:///{home.database}",
            artifacts=str(home.artifacts),
            usage_dir=home.usage,
            internal_token=SecretStr(home.internal_token()),
            admin_key=admin_key,
        )
    )
    app.include_router(router(store, require_token(admin_key, "admin key")))
    return app


@pytest.fixture
def hmi(served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line over the server's home; returns exit code, output and errors."""
    for name in ("HMI_API_KEY", "HMI_ADMIN_KEY", "HMI_SERVER", "HMI_HOME"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["--home", str(served.home.path), *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run
