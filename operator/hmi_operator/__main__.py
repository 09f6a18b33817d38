"""``python -m hmi_operator [run | release]``: the operator on Kubernetes.

``run`` (the default) watches and reconciles Domains and TaskAdapters. ``release`` removes HMI's finalizers
from all of them, for an uninstallation: they stay, and can be deleted without an operator.

Settings come from the environment (``HMI_...``). Exit status: 0 done, 1 failed, 2 wrong settings.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.internal.client import ControlPlaneClient
from hmi_api.security.bearer import TokenSource
from hmi_api.settings import load_settings, trim_environment
from hmi_operator.controller import Pace
from hmi_operator.kubernetes.client import connect
from hmi_operator.kubernetes.events import EventRecorder
from hmi_operator.kubernetes.jobs import JobCache, KubernetesTrainingJobs
from hmi_operator.kubernetes.lease import Lease
from hmi_operator.kubernetes.observability import OperatorMetrics, configure_logging, serve_probes
from hmi_operator.kubernetes.operator import Operator
from hmi_operator.kubernetes.remove_finalizers import remove_finalizers
from hmi_operator.orphans import OrphanGrace
from hmi_operator.settings import OperatorSettings, ReleaseSettings

DONE, FAILED, WRONG_SETTINGS = 0, 1, 2

logger = logging.getLogger("hmi_operator")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hmi_operator", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "release"), default="run")
    command = parser.parse_args(arguments).command
    try:
        trim_environment(os.environ)
        settings = load_settings(OperatorSettings if command == "run" else ReleaseSettings)
    except InvalidInput as error:
        print(error.message, file=sys.stderr)
        return WRONG_SETTINGS
    configure_logging(settings.log_format, settings.log_level)
    try:
        asyncio.run(run(settings) if isinstance(settings, OperatorSettings) else release(settings))
    except HmiError as error:
        logger.error("%s", error)
        return FAILED
    return DONE


async def run(settings: OperatorSettings) -> None:
    """Run a replica until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = OperatorMetrics()
    token = settings.internal_token.get_secret_value() if settings.internal_token else None
    tokens = TokenSource(token, file=settings.internal_token_file)
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            connect(metrics.record_request, watches=max(len(settings.watch_namespaces), 1))
        )
        control_plane = await stack.enter_async_context(
            ControlPlaneClient(settings.control_plane_url, tokens)
        )
        job_cache = JobCache()
        operator = Operator(
            client=client,
            control_plane=control_plane,
            jobs=KubernetesTrainingJobs(client, job_cache, settings),
            lease=Lease(client, settings.namespace, settings.pod_name, seconds=settings.lease_seconds),
            events=EventRecorder(client, settings.pod_name, namespace=settings.namespace),
            job_cache=job_cache,
            metrics=metrics,
            orphan_grace=OrphanGrace(settings.orphan_grace_seconds, settings.inherited_grace_seconds),
            webhook=settings.webhook(),
            namespaces=settings.watch_namespaces,
            workers=settings.workers,
            pace=Pace(
                resync_seconds=settings.resync_seconds,
                per_second=settings.reconciles_per_second,
                shortest_poll_seconds=settings.progress_seconds,
            ),
            environment=settings.environment(),
        )
        await stack.enter_async_context(
            serve_probes(
                settings.probe_host,
                settings.probe_port,
                alive=lambda: None,
                ready=operator.problem,
                registry=metrics.registry,
            )
        )
        await operator.run(stop)


async def release(settings: ReleaseSettings) -> None:
    """Remove HMI's finalizers."""
    async with connect() as client:
        lease = Lease(client, settings.namespace, "release", seconds=settings.lease_seconds)
        count = await remove_finalizers(client, lease, settings.watch_namespaces)
    logger.info("the finalizers of %d resources were removed; the resources stay", count)


if __name__ == "__main__":
    sys.exit(main())
