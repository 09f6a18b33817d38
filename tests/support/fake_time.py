"""A clock for retries that only sleeping moves, so that tests of long waits take no time."""

from dataclasses import dataclass, field

import pytest
import tenacity

from hmi_api.internal import retry


@dataclass
class FakeTime:
    """Stands in for the module ``time`` in tenacity, and for the sleep functions of ``RetryPolicy``."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


def install_fake_time(patch: pytest.MonkeyPatch) -> FakeTime:
    """Replace the clock and the sleep of every retry until ``patch`` is undone."""
    fake = FakeTime()
    patch.setattr(tenacity, "time", fake)
    patch.setattr(retry, "sleep", fake.sleep)
    patch.setattr(retry, "sleep_async", fake.sleep_async)
    return fake
