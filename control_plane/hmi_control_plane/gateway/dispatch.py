"""Dispatch: rows go to runtimes that serve them, in few requests, and once more after a failure."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hmi_api.wire import InferRequest, InferRow, RowError, RowResult
from hmi_control_plane.gateway.routes import Route, RoutingTable, RuntimeAddress
from hmi_control_plane.gateway.runtime_client import RuntimeClient, RuntimeUnavailableError

log = logging.getLogger(__name__)

_ATTEMPTS = 2
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


class Dispatcher:
    """Sends rows to runtimes; every row gets a result, an error if need be.

    ``deadline`` is in seconds and covers the second attempt too.
    """

    def __init__(self, client: RuntimeClient, table: RoutingTable, *, deadline: float = 30.0) -> None:
        self._client = client
        self._table = table
        self._deadline = deadline
        self._rows_in_flight: Counter[str] = Counter()

    async def infer(self, request_id: str, rows: Sequence[RoutedRow]) -> list[RowResult]:
        """Return one result a row, in order."""
        results: list[RowResult] = [RowResult(error=_NOT_LOADED)] * len(rows)
        try:
            async with asyncio.timeout(self._deadline):
                await self._attempt_all(request_id, rows, results)
        except TimeoutError:
            return [RowResult(error=_TOO_SLOW) if _may_retry(result) else result for result in results]
        return results

    async def _attempt_all(
        self, request_id: str, rows: Sequence[RoutedRow], results: list[RowResult]
    ) -> None:
        pending = list(range(len(rows)))
        avoid: set[str] = set()
        for _ in range(_ATTEMPTS):
            shares = self._share_out(rows, pending, avoid)
            if not shares:
                return
            failed = await asyncio.gather(
                *(
                    self._call(request_id, runtime, places, rows, results)
                    for runtime, places in shares.items()
                )
            )
            avoid.update(runtime_id for runtime_id in failed if runtime_id is not None)
            pending = [place for place in pending if _may_retry(results[place])]
            if not pending:
                return
            self._table.distrust({rows[place].route.key for place in pending})

    def _share_out(
        self, rows: Sequence[RoutedRow], places: Sequence[int], avoid: set[str]
    ) -> dict[RuntimeAddress, list[int]]:
        """Return which runtime answers which places: greedily the one that serves most of what is left.

        Between equals the one with fewer of our rows in flight. Rows that nobody serves are left out.
        """
        shares: dict[RuntimeAddress, list[int]] = {}
        left = list(places)
        while left:
            able: Counter[RuntimeAddress] = Counter(
                runtime for place in left for runtime in rows[place].route.runtimes if runtime.id not in avoid
            )
            if not able:
                break
            best = max(able, key=lambda runtime: (able[runtime], -self._rows_in_flight[runtime.id]))
            shares[best] = [place for place in left if best in rows[place].route.runtimes]
            taken = set(shares[best])
            left = [place for place in left if place not in taken]
        return shares

    async def _call(
        self,
        request_id: str,
        runtime: RuntimeAddress,
        places: Sequence[int],
        rows: Sequence[RoutedRow],
        results: list[RowResult],
    ) -> str | None:
        """Fill in the results of one runtime's share; return its id when it should not be asked again."""
        request = InferRequest(request_id=request_id, rows=[rows[place].row for place in places])
        self._rows_in_flight[runtime.id] += len(places)
        try:
            reply = await self._client.infer(runtime.url, request)
        except RuntimeUnavailableError as error:
            log.warning("request %s: runtime %s failed: %s", request_id, runtime.id, error)
            for place in places:
                results[place] = RowResult(error=_UNAVAILABLE)
            return None if error.refused and _only_choice(runtime, places, rows) else runtime.id
        finally:
            self._rows_in_flight[runtime.id] -= len(places)
            if not self._rows_in_flight[runtime.id]:
                del self._rows_in_flight[runtime.id]
        for place, result in zip(places, reply.results, strict=True):
            results[place] = result
        return runtime.id if any(_may_retry(result) for result in reply.results) else None


def _may_retry(result: RowResult) -> bool:
    return result.error is not None and result.error.status == 503


def _only_choice(runtime: RuntimeAddress, places: Sequence[int], rows: Sequence[RoutedRow]) -> bool:
    """Say whether a row has nobody else: a runtime just restarting is worth a second try then."""
    return any(rows[place].route.runtimes == (runtime,) for place in places)
