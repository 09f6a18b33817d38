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
Fault = Callable[[], Awaitable[None]]


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
    """An API server with one Lease in it; ``faults`` are called for requests by their number, from 0."""

    def __init__(self) -> None:
        self.kept: V1Lease | None = None
        self.faults: dict[int, Fault] = {}
        self.requests = 0
        self.renewed_at: list[float] = []

    @property
    def coordination(self) -> "OneLease":
        """The API group of Leases."""
        return self

    async def read_namespaced_lease(self, name: str, namespace: str) -> V1Lease:
        fault = self.faults.get(self.requests, self.faults.get(-1))
        self.requests += 1
        if fault is not None:
            await fault()
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


def run_in_fake_time(scenario: Callable[[OneLease, Lease], Awaitable[None]]) -> None:
    """Run a scenario that begins when the leader has the lease."""

    async def run() -> None:
        server: Any = OneLease()
        clock = asyncio.get_running_loop().time
        lease = Lease(server, "hmi-system", "one", seconds=SECONDS, clock=clock)
        await lease.acquire()
        await scenario(server, lease)

    with asyncio.Runner(loop_factory=PassingTime) as runner:
        runner.run(run())


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({}, id="nothing"),
        pytest.param({1: hangs}, id="one request hangs"),
        pytest.param({3: hangs, 5: hangs}, id="one now and then hangs"),
        pytest.param(dict.fromkeys(range(2, 8), fails), id="six in a row fail"),
    ],
)
def test_a_leader_survives_short_outages(faults: dict[int, Fault]) -> None:
    async def scenario(server: OneLease, lease: Lease) -> None:
        server.faults = faults
        keeping = asyncio.create_task(lease.keep())
        await asyncio.sleep(10 * SECONDS)
        assert not keeping.done()
        assert lease.held
        assert server.requests > max(faults, default=0)
        keeping.cancel()

    run_in_fake_time(scenario)


@pytest.mark.parametrize("fault", [hangs, fails])
def test_a_replica_that_cannot_reach_the_lease_is_not_ready(fault: Fault) -> None:
    async def scenario(server: OneLease, lease: Lease) -> None:
        assert lease.problem() is None
        server.faults = {-1: fault}
        await lease.keep()
        waiting = asyncio.create_task(lease.acquire())
        assert lease.problem() is None, "a short outage is none"
        await asyncio.sleep(3 * SECONDS)
        said = lease.problem()
        assert said is not None
        assert said.startswith("the lease hmi-system/hmi-operator could not be read or renewed for")
        waiting.cancel()
        server.faults = {}
        await lease.acquire()
        assert lease.problem() is None

    run_in_fake_time(scenario)


def test_a_standby_is_ready_while_another_replica_leads() -> None:
    async def scenario(server: OneLease, lease: Lease) -> None:
        clock = asyncio.get_running_loop().time
        standby = Lease(cast(Any, server), "hmi-system", "two", seconds=SECONDS, clock=clock)
        tasks = [asyncio.create_task(lease.keep()), asyncio.create_task(standby.acquire())]
        await asyncio.sleep(10 * SECONDS)
        assert standby.problem() is None
        for task in tasks:
            task.cancel()

    run_in_fake_time(scenario)


def test_a_standby_logs_the_leader_at_first_periodically_and_at_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def scenario(server: OneLease, lease: Lease) -> None:
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

    run_in_fake_time(scenario)
    logged = [record.getMessage() for record in caplog.records if record.getMessage().startswith("standby")]
    assert [message.split(";")[0] for message in logged] == [
        *["standby: two does nothing while one leads"] * 3,
        "standby: two does nothing while three leads",
    ]
    assert logged[0].endswith("kubectl -n hmi-system logs one")


@pytest.mark.parametrize("fault", [hangs, fails])
def test_a_leader_whose_renewals_all_fail_stops_before_another_may_start(fault: Fault) -> None:
    async def scenario(server: OneLease, lease: Lease) -> None:
        server.faults = {-1: fault}
        await lease.keep()
        assert not lease.held
        assert asyncio.get_running_loop().time() - server.renewed_at[-1] < SECONDS
        assert server.requests > 2, "it is tried more than once"

    run_in_fake_time(scenario)
