"""Waiting for resources to be Ready, with a limit, watching them come along."""

import time
from collections.abc import Callable
from typing import Any

from hmi_api.resources.conditions import Phase
from hmi_cli.demo.board import Board
from hmi_cli.kinds import KINDS
from hmi_cli.render.resources import ready_status
from hmi_cli.resource_api import ResourceApi

POLL_S = 0.5
Object = dict[str, Any]


def all_objects(api: ResourceApi) -> list[Object]:
    """Return every Domain and TaskAdapter, Domains first."""
    return [item for kind in KINDS for item in api.list(kind, None)]


def settled(item: Object) -> bool:
    """Say whether a resource is Ready, or has failed in a way that waiting will not mend."""
    status = item.get("status") or {}
    seen = status.get("observedGeneration") == item["metadata"].get("generation", 1)
    return ready_status(item) == "True" or (seen and status.get("phase") in (Phase.FAILED, Phase.DEGRADED))


def wait_until_settled(
    api: ResourceApi, board: Board, *, limit_s: float, alive: Callable[[], bool]
) -> list[Object]:
    """Show the resources until all have settled, the limit has passed or the system has ended."""
    ends = time.monotonic() + limit_s
    while True:
        items = all_objects(api)
        board.show(items)
        if all(settled(item) for item in items) or time.monotonic() > ends or not alive():
            return items
        time.sleep(POLL_S)
