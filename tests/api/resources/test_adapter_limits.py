"""The size limits of adapters, which every part reads from the same variables."""

from typing import Any

import pytest

from hmi_api.errors import InvalidInput
from hmi_api.internal.trainer import TrainingSettings
from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.resources.task_adapter import TaskAdapterSpec
from hmi_operator.settings import OperatorSettings
from hmi_runtime.server.settings import RuntimeSettings

LIMITS = AdapterLimits(max_rank=32, max_bottleneck=64, max_labels=3)


def spec(**changes: Any) -> TaskAdapterSpec:
    made = {
        "domainRef": {"name": "hotel"},
        "task": {"type": "SequenceClassification"},
        "data": {"train": {"uri": "s3://b/rows"}},
    } | changes
    return TaskAdapterSpec.model_validate({name: value for name, value in made.items() if value is not None})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": {"size": 32}},
        {"method": {"type": "Bottleneck", "size": 64}},
        {"task": {"type": "SequenceClassification", "labels": ["a", "b", "c"]}},
        {"data": None, "source": {"uri": "s3://b/lora"}, "method": {"size": 64}},  # its folder says its rank
    ],
)
def test_adapters_within_the_limits_are_accepted(changes: dict[str, Any]) -> None:
    LIMITS.check_spec(spec(**changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": {"size": 33}}, ("rank 33", "at most 32", "slots.maxRank", "HMI_MAX_RANK")),
        ({"method": {"type": "Bottleneck", "size": 65}}, ("width 65", "HMI_MAX_BOTTLENECK")),
        (
            {"task": {"type": "SequenceClassification", "labels": ["a", "b", "c", "d"]}},
            ("spec.task.labels names 4 labels", "at most 3", "HMI_MAX_LABELS"),
        ),
        (
            {
                "task": {"type": "SequenceClassification", "labels": ["a", "b", "c", "d"]},
                "data": None,
                "source": {"uri": "s3://b/lora"},
            },
            ("4 labels",),
        ),
    ],
)
def test_adapters_above_the_limits_are_refused(changes: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput) as caught:
        LIMITS.check_spec(spec(**changes))
    assert caught.value.reason == "AdapterTooLarge"
    assert all(part in caught.value.message for part in named)


def test_bottlenecks_are_refused_where_slots_have_none() -> None:
    with pytest.raises(InvalidInput, match="AdapterTooLarge"):
        AdapterLimits(max_bottleneck=0).check_spec(spec(method={"type": "Bottleneck"}))


def test_every_part_has_the_same_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_all_parts() -> list[AdapterLimits]:
        token, url = "sixteen-characters", "http://127.0.0.1:9"
        return [
            AdapterLimits(),
            RuntimeSettings(control_plane_url=url, internal_token=token).limits(),
            OperatorSettings(control_plane_url=url, internal_token=token, trainer_image="i").limits(),
            TrainingSettings().limits(),
        ]

    assert len({tuple(limits.as_environment().items()) for limits in of_all_parts()}) == 1
    expected = {"HMI_MAX_RANK": "64", "HMI_MAX_BOTTLENECK": "0", "HMI_MAX_LABELS": "1000"}
    for name, value in expected.items():
        monkeypatch.setenv(name, value)
    assert all(limits.as_environment() == expected for limits in of_all_parts())
