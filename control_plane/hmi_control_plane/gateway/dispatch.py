"""Dispatch: rows go to runtimes that serve them, in few requests, and elsewhere after a failure."""

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hmi_api.internal.inference import InferRequest, InferRow, RowError, RowResult
from hmi_api.names import AdapterKey
from hmi_control_plane.gateway.routes import CatalogUnavailableError, Route, RoutingTable, RuntimeAddress
from hmi_control_plane.gateway.runtime_client import RuntimeClient, RuntimeUnavailableError

log = logging.getLogger(__name__)

_ATTEMPTS = 4
_PAUSE_SECONDS = 0.1
"""Before the second attempt at a runtime that took no connection; twice as long before each one after."""
_NOT_LOADED = RowError(
    status=503, reason="ModelNotLoaded", message="The model is not loaded yet; try again shortly."
)
_UNAVAILABLE = RowError(
    status=503, reason="RuntimeUnavailable", message="The runtime did not answer; try again shortly."
)
_TOO_SLOW = RowError(
    status=503,
    reason="DeadlineExceeded",
    message="No runtime answered in time; try again or send fewer texts.",
)


@dataclass(frozen=True, slots=True)
class RoutedRow:
    """One row and where it can be answered."""

    row: InferRow
    route: Route


@dataclass(frozen=True, slots=True)
class _Failed:
    """A runtime that left rows unanswered; ``refused`` when it took no connection."""

    runtime: RuntimeAddress
    refused: bool


class Dispatcher:
    """Sends rows to runtimes; every row gets a result, an error if need be.

    Inference changes nothing, so what one runtime did not answer is asked of another, by routes that are
    read again: a runtime that stops or moves is in the catalog before it is in anybody's memory.
    ``deadline`` is in seconds and covers all attempts.
    """

    def __init__(self, client: RuntimeClient, table: RoutingTable, *, deadline: float = 30.0) -> None:
        self._client = client
        self._table = table
        self._deadline = deadline
        self._rows_in_flight: Counter[str] = Counter()

    async def infer(
        self, request_id: str, rows: Sequence[RoutedRow], *, tenant_id: str | None = None
    ) -> list[RowResult]:
        """Return one result a row, in order.

        Runtimes answer for adapters of the tenant with ``tenant_id`` alone, whatever routes are read again.
        """
        results: list[RowResult] = [RowResult(error=_NOT_LOADED)] * len(rows)
        try:
            async with asyncio.timeout(self._deadline):
                await self._attempt_all(request_id, tenant_id, rows, results)
        except TimeoutError:
            return [RowResult(error=_TOO_SLOW) if _is_our_word(result) else result for result in results]
        return results

    async def _attempt_all(
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
        pause = _PAUSE_SECONDS
        for attempt in range(_ATTEMPTS):
            if attempt:
                routes |= await self._read_again({rows[place].route.key for place in pending})
            able = {
                place: [one for one in routes[rows[place].route.key].runtimes if one not in avoid]
                for place in pending
            }
            shares = self._share_out(able)
            if not shares:
                return
            if shares.keys() & refused:  # it may just be starting, or be starved
                await asyncio.sleep(pause)
                pause *= 2
            failed = await _all(
                [
                    self._call(_request(request_id, tenant_id, places, rows), runtime, places, results)
                    for runtime, places in shares.items()
                ]
            )
            refused = {one.runtime for one in failed if one and one.refused}
            # One that took no connection and is some row's only choice is asked again.
            only = {able[place][0] for place in pending if len(able[place]) == 1}
            avoid.update(one.runtime for one in failed if one and one.runtime not in refused & only)
            pending = [place for place in pending if _may_retry(results[place])]
            if not pending:
                return
        self._table.distrust({rows[place].route.key for place in pending})

    async def _read_again(self, keys: set[AdapterKey]) -> Mapping[AdapterKey, Route]:
        """Return the routes as the catalog has them now; nothing for those it does not tell."""
        self._table.distrust(keys)
        try:
            return await self._table.routes(keys)
        except CatalogUnavailableError:
            return {}

    def _share_out(self, able: Mapping[int, Sequence[RuntimeAddress]]) -> dict[RuntimeAddress, list[int]]:
        """Return which runtime answers which places: greedily the one that serves most of what is left.

        ``able`` are the runtimes by place. Between equals the one with fewer of our rows in flight is taken.
        Rows that nobody serves are left out.
        """
        shares: dict[RuntimeAddress, list[int]] = {}
        left = [place for place, runtimes in able.items() if runtimes]
        while left:
            serves = Counter(runtime for place in left for runtime in able[place])
            best = max(serves, key=lambda runtime: (serves[runtime], -self._rows_in_flight[runtime.id]))
            shares[best] = [place for place in left if best in able[place]]
            left = [place for place in left if best not in able[place]]
        return shares

    async def _call(
        self,
        request: InferRequest,
        runtime: RuntimeAddress,
        places: Sequence[int],
        results: list[RowResult],
    ) -> _Failed | None:
        """Fill in the results of one runtime's share; return how it failed, if it did."""
        self._rows_in_flight[runtime.id] += len(places)
        try:
            reply = await self._client.infer(runtime.url, request)
        except RuntimeUnavailableError as error:
            log.warning("request %s: runtime %s failed: %s", request.request_id, runtime.id, error)
            for place in places:
                if _is_our_word(results[place]):
                    results[place] = RowResult(error=_UNAVAILABLE)
            return _Failed(runtime, refused=error.refused)
        finally:
            self._rows_in_flight[runtime.id] -= len(places)
            if not self._rows_in_flight[runtime.id]:
                del self._rows_in_flight[runtime.id]
        for place, result in zip(places, reply.results, strict=True):
            results[place] = result
        return _Failed(runtime, refused=False) if any(map(_may_retry, reply.results)) else None


def _request(
    request_id: str, tenant_id: str | None, places: Sequence[int], rows: Sequence[RoutedRow]
) -> InferRequest:
    return InferRequest(
        request_id=request_id, tenant_id=tenant_id, rows=[rows[place].row for place in places]
    )


async def _all(calls: Sequence[Coroutine[Any, Any, _Failed | None]]) -> list[_Failed | None]:
    """Wait for all calls; one alone, as most are, needs no task of its own."""
    return [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)


def _is_our_word(result: RowResult) -> bool:
    """Say whether no runtime has said anything of a row: what one said, such as ArtifactMissing, is kept."""
    return result.error in (_NOT_LOADED, _UNAVAILABLE)


def _may_retry(result: RowResult) -> bool:
    return result.error is not None and result.error.status == 503
