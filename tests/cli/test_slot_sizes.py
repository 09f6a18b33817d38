"""The embedded runtime's slots have room for adapters of every default size."""

import pytest

from hmi_cli.system.server import LIMIT_DEFAULTS, embedded_limits
from hmi_runtime.adapters.compression import CANDIDATE_RANKS
from hmi_runtime.server.settings import RuntimeSettings
from hmi_runtime.training.adapter_training import BOTTLENECK_WIDTH, DIRECT_LORA_RANK


def test_every_default_size_fits_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LIMIT_DEFAULTS.items():
        monkeypatch.setenv(name, value)
    limits = RuntimeSettings(
        control_plane_url="http://127.0.0.1:9", internal_token="sixteen-characters"
    ).slot_limits
    assert limits.max_rank >= max(*CANDIDATE_RANKS, DIRECT_LORA_RANK)
    assert limits.max_bottleneck >= BOTTLENECK_WIDTH
    assert limits.dense_heads


@pytest.mark.parametrize("raised", [{}, {"HMI_MAX_RANK": "64", "HMI_MAX_LABELS": "1000"}])
def test_admission_training_and_serving_have_the_same_limits(
    raised: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in raised.items():
        monkeypatch.setenv(name, value)
    expected = {"HMI_MAX_RANK": "32", "HMI_MAX_BOTTLENECK": "64", "HMI_MAX_LABELS": "256"} | raised
    assert embedded_limits().as_environment() == expected
