"""``python -m hmi_operator [run | release]``: the operator on Kubernetes.

``run`` (the default) watches Domains and TaskAdapters and brings about what they declare. ``release`` takes
HMI's finalizers off all of them, for an uninstallation: they stay, and can be deleted without an operator.

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
from hmi_operator.kubernetes.api import KubeApi
from hmi_operator.kubernetes.events import EventRecorder
from hmi_operator.kubernetes.jobs import KubeJobs, TrainingCache
from hmi_operator.kubernetes.lease import Lease
from hmi_operator.kubernetes.login import KopfLogin
from hmi_operator.kubernetes.logs import configure_logging
from hmi_operator.kubernetes.metrics import OperatorMetrics
from hmi_operator.kubernetes.operator import Operator, Parts
from hmi_operator.kubernetes.probes import serving
from hmi_operator.kubernetes.release import release_all
from hmi_operator.kubernetes.webhook import Reviewer, serving_webhook
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
        api = await stack.enter_async_context(KubeApi(KopfLogin(), heard=metrics.requested))
        control_plane = await stack.enter_async_context(
            ControlPlaneClient(settings.control_plane_url, tokens)
        )
        training = TrainingCache()
        operator = Operator(
            Parts(
                api=api,
                control_plane=control_plane,
                jobs=KubeJobs(api, training, settings.trainer()),
                lease=Lease(api, settings.namespace, settings.pod_name, seconds=settings.lease_seconds),
                training=training,
                metrics=metrics,
                events=EventRecorder(api, settings.pod_name),
                orphan_grace=OrphanGrace(settings.orphan_grace_seconds, settings.inherited_grace_seconds),
                namespace=settings.namespace,
                instance=settings.pod_name,
            ),
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
            serving(
                settings.probe_host,
                settings.probe_port,
                alive=lambda: None,
                ready=operator.trouble,
                registry=metrics.registry,
            )
        )
        webhook = settings.webhook()
        if webhook is not None:
            reviewer = Reviewer(operator.cache.get, operator.trouble, settings.environment())
            await stack.enter_async_context(serving_webhook(webhook, reviewer))
        await operator.run(stop)


async def release(settings: ReleaseSettings) -> None:
    """Take the finalizers off."""
    async with KubeApi(KopfLogin()) as api:
        lease = Lease(api, settings.namespace, "release", seconds=settings.lease_seconds)
        released = await release_all(api, lease, settings.watch_namespaces)
    logger.info("%d resources are no longer held; they are still there", released)


if __name__ == "__main__":
    sys.exit(main())
