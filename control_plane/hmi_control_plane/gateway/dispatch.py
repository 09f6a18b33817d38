"""Sends rows to the runtimes that serve them, in few requests, and to other runtimes after a failure."""

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hmi_api.internal.inference import InferRequest, InferRow, RowError, RowResult
from hmi_api.names import AdapterKey
from hmi_control_plane.gateway.routes import CatalogUnavailableError, Route, RoutingTable, RuntimeAddress
from hmi_control_plane.gateway.runtime_client import NoConnectionError, RuntimeClient, RuntimeUnavailableError

log = logging.getLogger(__name__)

_ATTEMPTS = 4
_RETRY_PAUSE_SECONDS = 0.1
"""Before a second attempt at a runtime that refused the connection; doubled before each further one."""
_NOT_LOADED = RowError(
    status=503, reason="ModelNotLoaded", message="The model is not loaded yet; try again shortly."
)
_UNAVAILABLE = RowError(
    status=503, reason="RuntimeUnavailable", message="The runtime did not answer; try again shortly."
)
_DEADLINE_EXCEEDED = RowError(
    status=503,
    reason="DeadlineExceeded",
    message="No runtime answered in time; try again or send fewer texts.",
)


@dataclass(frozen=True, slots=True)
class RoutedRow:
    """One row and the route of its adapter."""

    row: InferRow
    route: Route


@dataclass(frozen=True, slots=True)
class _RuntimeFailure:
    """A runtime that did not answer all rows; ``refused``: it did not accept a connection."""

    runtime: RuntimeAddress
    refused: bool


class Dispatcher:
    """Sends rows to runtimes; every row gets a result, possibly an error.

    Inference has no side effects, so rows that one runtime did not answer are sent to another. Routes are
    read again before that, since the catalog knows first that a runtime stopped or moved. ``deadline`` is in
    seconds and covers all attempts.
    """

    def __init__(self, client: RuntimeClient, table: RoutingTable, *, deadline: float = 30.0) -> None:
        self._client = client
        self._table = table
        self._deadline = deadline
        self._rows_in_flight: Counter[str] = Counter()

    async def infer(
        self, request_id: str, rows: Sequence[RoutedRow], *, tenant_id: str | None = None
    ) -> list[RowResult]:
        """Return one result per row, in order. Runtimes check that adapters belong to ``tenant_id``."""
        results: list[RowResult] = [RowResult(error=_NOT_LOADED)] * len(rows)
        try:
            async with asyncio.timeout(self._deadline):
                await self._try_all(request_id, tenant_id, rows, results)
        except TimeoutError:
            return [
                RowResult(error=_DEADLINE_EXCEEDED) if _is_unanswered(result) else result
                for result in results
            ]
        return results

    async def _try_all(
        self,
        request_id: str,
        tenant_id: str | None,
        rows: Sequence[RoutedRow],
        results: list[RowResult],
    ) -> None:
        pending = list(range(len(rows)))
        routes = {row.route.key: row.route for row in rows}
        avoid: set[RuntimeAddress] = set()
        refused: set[RuntimeAddress] = set()
        pause = _RETRY_PAUSE_SECONDS
        for attempt in range(_ATTEMPTS):
            if attempt:
                routes |= await self._refresh_routes({rows[index].route.key for index in pending})
            candidates = {
                index: [one for one in routes[rows[index].route.key].runtimes if one not in avoid]
                for index in pending
            }
            assignment = self._assign(candidates)
            if not assignment:
                return
            if assignment.keys() & refused:  # it may be starting or overloaded
                await asyncio.sleep(pause)
                pause *= 2
            failed = await _all(
                [
                    self._call(_request(request_id, tenant_id, indices, rows), runtime, indices, results)
                    for runtime, indices in assignment.items()
                ]
            )
            refused = {one.runtime for one in failed if one and one.refused}
            # A runtime that refused the connection is tried again if it is the only candidate of a row.
            only = {candidates[index][0] for index in pending if len(candidates[index]) == 1}
            avoid.update(one.runtime for one in failed if one and one.runtime not in refused & only)
            pending = [index for index in pending if _may_retry(results[index])]
            if not pending:
                return
        self._table.invalidate({rows[index].route.key for index in pending})

    async def _refresh_routes(self, keys: set[AdapterKey]) -> Mapping[AdapterKey, Route]:
        """Return the routes as the catalog has them now, or nothing while it is unavailable."""
        self._table.invalidate(keys)
        try:
            return await self._table.routes(keys)
        except CatalogUnavailableError:
            return {}

    def _assign(self, candidates: Mapping[int, Sequence[RuntimeAddress]]) -> dict[RuntimeAddress, list[int]]:
        """Return the rows for each runtime, greedily: first the runtime that serves most remaining rows.

        ``candidates`` are the runtimes by row index. Ties go to the runtime with fewer rows in flight from
        this gateway. Rows without candidates are left out.
        """
        assignment: dict[RuntimeAddress, list[int]] = {}
        remaining = [index for index, runtimes in candidates.items() if runtimes]
        while remaining:
            serves = Counter(runtime for index in remaining for runtime in candidates[index])
            best = max(serves, key=lambda runtime: (serves[runtime], -self._rows_in_flight[runtime.id]))
            assignment[best] = [index for index in remaining if best in candidates[index]]
            remaining = [index for index in remaining if best not in candidates[index]]
        return assignment

    async def _call(
        self,
        request: InferRequest,
        runtime: RuntimeAddress,
        indices: Sequence[int],
        results: list[RowResult],
    ) -> _RuntimeFailure | None:
        """Send one runtime its rows and store their results; return the failure, if any."""
        self._rows_in_flight[runtime.id] += len(indices)
        try:
            reply = await self._client.infer(runtime.url, request)
        except RuntimeUnavailableError as error:
            log.warning(
                "request %s: runtime %s at %s failed: %s", request.request_id, runtime.id, runtime.url, error
            )
            for index in indices:
                if _is_unanswered(results[index]):
                    results[index] = RowResult(error=_UNAVAILABLE)
            return _RuntimeFailure(runtime, refused=isinstance(error, NoConnectionError))
        finally:
            self._rows_in_flight[runtime.id] -= len(indices)
            if not self._rows_in_flight[runtime.id]:
                del self._rows_in_flight[runtime.id]
        for index, result in zip(indices, reply.results, strict=True):
            results[index] = result
        return _RuntimeFailure(runtime, refused=False) if any(map(_may_retry, reply.results)) else None


def _request(
    request_id: str, tenant_id: str | None, indices: Sequence[int], rows: Sequence[RoutedRow]
) -> InferRequest:
    return InferRequest(
        request_id=request_id, tenant_id=tenant_id, rows=[rows[index].row for index in indices]
    )


async def _all(calls: Sequence[Coroutine[Any, Any, _RuntimeFailure | None]]) -> list[_RuntimeFailure | None]:
    """Wait for all calls. A single call, the usual case, needs no task."""
    return [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)


def _is_unanswered(result: RowResult) -> bool:
    """Return whether no runtime answered the row yet; a runtime's error, such as ArtifactMissing, is kept."""
    return result.error in (_NOT_LOADED, _UNAVAILABLE)


def _may_retry(result: RowResult) -> bool:
    return result.error is not None and result.error.status == 503
