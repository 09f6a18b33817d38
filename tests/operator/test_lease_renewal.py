"""How a leader renews its lease when the API server fails or hangs, in a time that only the test passes."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from kubernetes.aio.client import V1Lease

from hmi_api.errors import NotReady
from hmi_operator.kubernetes.client import ApiServerNotFound, metadata_of
from hmi_operator.kubernetes.lease import Lease

SECONDS = 12.0
PodProblem = Callable[[], Awaitable[None]]


class PassingTime(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the time of the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._moment = 0.0

    def time(self) -> float:
        return self._moment

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._moment = max(self._moment, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class OneLease:
    """An API server with one Lease in it; ``troubles`` befall requests by their number, from 0."""

    def __init__(self) -> None:
        self.kept: V1Lease | None = None
        self.troubles: dict[int, PodProblem] = {}
        self.asked = 0
        self.renewed_at: list[float] = []

    @property
    def coordination(self) -> "OneLease":
        """The API group of Leases."""
        return self

    async def read_namespaced_lease(self, name: str, namespace: str) -> V1Lease:
        trouble = self.troubles.get(self.asked, self.troubles.get(-1))
        self.asked += 1
        if trouble is not None:
            await trouble()
        if self.kept is None:
            raise ApiServerNotFound(404, "NotFound", "There is no such Lease.")
        return self.kept.model_copy(deep=True)

    async def create_namespaced_lease(self, namespace: str, body: V1Lease) -> V1Lease:
        return self._keep(body, 1)

    async def replace_namespaced_lease(self, name: str, namespace: str, body: V1Lease) -> V1Lease:
        return self._keep(body, int(str(metadata_of(body).resource_version)) + 1)

    def _keep(self, body: V1Lease, version: int) -> V1Lease:
        self.kept = body.model_copy(deep=True)
        metadata_of(self.kept).resource_version = str(version)
        self._note()
        return self.kept

    def _note(self) -> None:
        self.renewed_at.append(asyncio.get_running_loop().time())


async def hangs() -> None:
    await asyncio.Event().wait()


async def fails() -> None:
    raise NotReady("Unavailable", "The API server is overloaded.")


def in_passing_time(story: Callable[[OneLease, Lease], Awaitable[None]]) -> None:
    """Tell a story of a leader, from when it has the lease."""

    async def tell() -> None:
        server: Any = OneLease()
        clock = asyncio.get_running_loop().time
        lease = Lease(server, "hmi-system", "one", seconds=SECONDS, clock=clock)
        await lease.acquire()
        await story(server, lease)

    with asyncio.Runner(loop_factory=PassingTime) as runner:
        runner.run(tell())


@pytest.mark.parametrize(
    "troubles",
    [
        pytest.param({}, id="nothing"),
        pytest.param({1: hangs}, id="one request hangs"),
        pytest.param({3: hangs, 5: hangs}, id="one now and then hangs"),
        pytest.param(dict.fromkeys(range(2, 8), fails), id="six in a row fail"),
    ],
)
def test_a_leader_survives_short_outages(troubles: dict[int, PodProblem]) -> None:
    async def story(server: OneLease, lease: Lease) -> None:
        server.troubles = troubles
        keeping = asyncio.create_task(lease.keep())
        await asyncio.sleep(10 * SECONDS)
        assert not keeping.done()
        assert lease.held
        assert server.asked > max(troubles, default=0)
        keeping.cancel()

    in_passing_time(story)


@pytest.mark.parametrize("trouble", [hangs, fails])
def test_a_replica_that_cannot_reach_the_lease_is_not_ready(trouble: PodProblem) -> None:
    async def story(server: OneLease, lease: Lease) -> None:
        assert lease.problem() is None
        server.troubles = {-1: trouble}
        await lease.keep()
        waiting = asyncio.create_task(lease.acquire())
        assert lease.problem() is None, "a short outage is none"
        await asyncio.sleep(3 * SECONDS)
        said = lease.problem()
        assert said is not None
        assert said.startswith("the lease hmi-system/hmi-operator could not be read or renewed for")
        waiting.cancel()
        server.troubles = {}
        await lease.acquire()
        assert lease.problem() is None

    in_passing_time(story)


def test_a_standby_is_ready_while_another_replica_leads() -> None:
    async def story(server: OneLease, lease: Lease) -> None:
        clock = asyncio.get_running_loop().time
        standby = Lease(cast(Any, server), "hmi-system", "two", seconds=SECONDS, clock=clock)
        tasks = [asyncio.create_task(lease.keep()), asyncio.create_task(standby.acquire())]
        await asyncio.sleep(10 * SECONDS)
        assert standby.problem() is None
        for task in tasks:
            task.cancel()

    in_passing_time(story)


def test_a_standby_logs_the_leader_at_first_periodically_and_at_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def story(server: OneLease, lease: Lease) -> None:
        standby = Lease(
            cast(Any, server), "hmi-system", "two", seconds=SECONDS, clock=asyncio.get_running_loop().time
        )
        keeping = asyncio.create_task(lease.keep())
        waiting = asyncio.create_task(standby.acquire())
        await asyncio.sleep(1500)
        assert server.kept is not None
        assert server.kept.spec is not None
        server.kept.spec.holder_identity = "three"
        await asyncio.sleep(SECONDS / 2)
        for task in (keeping, waiting):
            task.cancel()

    in_passing_time(story)
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("standby")]
    assert [message.split(";")[0] for message in told] == [
        *["standby: two does nothing while one leads"] * 3,
        "standby: two does nothing while three leads",
    ]
    assert told[0].endswith("kubectl -n hmi-system logs one")


@pytest.mark.parametrize("trouble", [hangs, fails])
def test_a_leader_whose_renewals_all_fail_stops_before_another_may_start(trouble: PodProblem) -> None:
    async def story(server: OneLease, lease: Lease) -> None:
        server.troubles = {-1: trouble}
        await lease.keep()
        assert not lease.held
        assert asyncio.get_running_loop().time() - server.renewed_at[-1] < SECONDS
        assert server.asked > 2, "it is tried more than once"

    in_passing_time(story)
