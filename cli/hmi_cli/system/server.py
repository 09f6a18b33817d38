"""Runs the composed application in this process, and the runtime in a child, until told to stop."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from types import FrameType

import uvicorn
from fastapi import FastAPI

from hmi_cli.errors import CliError

OPEN_STREAMS_END_AFTER_S = 3


@dataclass(frozen=True)
class System:
    """The composed planes: an application to serve, and what must run beside it."""

    app: FastAPI
    jobs: tuple[Callable[[], Coroutine[object, object, None]], ...]
    """Each runs until it is cancelled; one that ends by itself ends the system."""


class _Server(uvicorn.Server):
    """A uvicorn that leaves signals alone: the runtime must be drained before the server goes."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.decided = asyncio.Event()
        """Set when the start has succeeded (``started``) or failed."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.decided.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Never called, as no signal is captured."""


def listen(host: str, port: int) -> socket.socket:
    """Bind an address before anything is started; ``CliError`` when it is taken. Port 0 takes a free one."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CliError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint="choose another with --port; 0 takes any that is free",
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address that clients on this machine use."""
    host, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{name}:{port}"


async def serve(system: System, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, then stop: reconciler first, runtime drained, server last.

    The runtime says goodbye to the control plane when it has drained, so the server outlives it.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    config = uvicorn.Config(
        system.app, log_config=None, access_log=False, timeout_graceful_shutdown=OPEN_STREAMS_END_AFTER_S
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await server.decided.wait()
    if server.started:
        announce()
        await _run_beside(system, serving, stop)
    server.should_exit = True
    await serving
    if not server.started:
        raise CliError("the control plane did not start", hint="the log above says why")


async def _run_beside(system: System, serving: "asyncio.Task[None]", stop: asyncio.Event) -> None:
    """Run the background jobs until told to stop or until one of them, or the server, ends by itself."""
    told = asyncio.create_task(stop.wait())
    jobs = [asyncio.create_task(job()) for job in system.jobs]
    done, _ = await asyncio.wait([told, serving, *jobs], return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    for job in jobs:
        job.cancel()
    results = await asyncio.gather(*jobs, return_exceptions=True)
    for ended, result in zip(jobs, results, strict=True):
        if ended in done and isinstance(result, BaseException):
            raise result
