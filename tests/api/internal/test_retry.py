"""Retries: how long they wait, when they stop and what they log."""

import logging

import pytest
from fake_time import FakeTime, install_fake_time

from hmi_api.internal.retry import RetryPolicy, Unavailable

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    return install_fake_time(monkeypatch)


class Failing:
    """Fails a number of times, then returns how often it was called."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.calls = 0
        self._failures = failures
        self._error = error or Unavailable("it answered 503")

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self._failures:
            raise self._error
        return self.calls

    async def awaited(self) -> int:
        return self()


def is_unavailable(error: BaseException) -> bool:
    return isinstance(error, Unavailable)


def test_waits_double_up_to_the_longest() -> None:
    policy = RetryPolicy(first_wait=0.5, longest_wait=3.0)
    assert [policy.wait(failures) for failures in (1, 2, 3, 4, 10_000)] == [0.5, 1.0, 2.0, 3.0, 3.0]


async def test_blocking_and_asynchronous_calls_wait_alike(time: FakeTime) -> None:
    policy = RetryPolicy(first_wait=0.5, longest_wait=3.0)
    assert policy.run(Failing(4), should_retry=is_unavailable) == 5
    blocking, time.slept = time.slept, []
    assert await policy.run_async(Failing(4).awaited, should_retry=is_unavailable) == 5
    assert blocking == time.slept == [0.5, 1.0, 2.0, 3.0]


def test_the_last_error_is_raised_unchanged() -> None:
    call = Failing(9)
    with pytest.raises(Unavailable, match="it answered 503"):
        RetryPolicy(first_wait=0.5, longest_wait=3.0, attempts=3).run(call, should_retry=is_unavailable)
    assert call.calls == 3


def test_other_errors_are_not_retried(time: FakeTime) -> None:
    call = Failing(1, ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        RetryPolicy(first_wait=0.5, longest_wait=3.0).run(call, should_retry=is_unavailable)
    assert (call.calls, time.slept) == (1, [])


def test_no_call_begins_after_the_time_limit(time: FakeTime) -> None:
    with pytest.raises(Unavailable):
        RetryPolicy(first_wait=1.0, longest_wait=60.0, patience=10.0).run(
            Failing(99), should_retry=is_unavailable
        )
    assert time.slept == [1.0, 2.0, 4.0]


def test_waits_are_logged_while_they_grow(caplog: pytest.LogCaptureFixture) -> None:
    policy = RetryPolicy(first_wait=1.0, longest_wait=4.0)
    with caplog.at_level(logging.WARNING):
        policy.run(Failing(50), should_retry=is_unavailable, name="the call")
        policy.run(Failing(50), should_retry=is_unavailable)
    assert caplog.messages == [
        f"the call failed (it answered 503); trying again in {seconds:.1f} s" for seconds in (1, 2, 4)
    ]
