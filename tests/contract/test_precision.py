"""The precision of runtimes' layers: what a pool has recorded, and what each runtime reports."""

from typing import Any

import pytest

from hmi_api.internal.precision import (
    EngineReport,
    EngineReports,
    MeasuredCandidate,
    PrecisionChoice,
    PrecisionKey,
    PrecisionRequest,
)

pytestmark = pytest.mark.anyio

KEY = PrecisionKey(
    pool="cpu", requested="auto", base_digest="sha256:b", split=3, processor="AuthenticAMD avx2 torch-2.13"
)
INT8 = PrecisionChoice(
    precision="int8",
    kernel="onednn",
    candidates=[
        MeasuredCandidate(precision="int8", kernel="onednn", milliseconds=1.25, cosine=0.999, agreement=0.98),
        MeasuredCandidate(precision="float32", kernel="mkl", milliseconds=9.5),
    ],
    sample="windows of shop/hotel@1",
)
FLOAT32 = PrecisionChoice(precision="float32", kernel="mkl")


async def ask(plane: Any, key: PrecisionKey, proposal: PrecisionChoice | None = None) -> Any:
    answer = await plane.client.record_precision("r1", PrecisionRequest(key=key, proposal=proposal))
    assert answer is not None
    return answer.choice


async def test_the_first_proposal_is_kept(plane: Any) -> None:
    assert await ask(plane, KEY) is None
    assert await ask(plane, KEY, INT8) == INT8
    assert await ask(plane, KEY, FLOAT32) == INT8
    assert await ask(plane, KEY) == INT8


@pytest.mark.parametrize(
    "other",
    [
        {"pool": "gpu"},
        {"requested": "float32"},
        {"base_digest": "sha256:c"},
        {"split": 2},
        {"processor": "GenuineIntel avx2 torch-2.13"},
    ],
)
async def test_another_key_has_a_choice_of_its_own(other: dict[str, Any], plane: Any) -> None:
    await ask(plane, KEY, INT8)
    key = KEY.model_copy(update=other)
    assert await ask(plane, key) is None
    assert await ask(plane, key, FLOAT32) == FLOAT32
    assert await ask(plane, KEY) == INT8


async def test_engines_are_reported_for_the_current_incarnation(plane: Any) -> None:
    await plane.register()
    report = EngineReport(
        base="wheel://m",
        base_digest="sha256:b",
        split=3,
        requested="auto",
        source="Pool",
        recorded=True,
        choice=INT8,
    )
    for incarnation in ("one", "older"):
        reports = EngineReports(incarnation=incarnation, pool="cpu", processor="avx2", engines=[report])
        await plane.client.report_engines("r1", reports)
    await plane.client.report_engines("unknown", reports)


@pytest.mark.parametrize(
    "body", [{}, {"key": {"pool": "cpu"}}, {"key": KEY.model_dump(by_alias=True), "x": 1}]
)
async def test_a_malformed_request_is_refused(body: Any, plane: Any) -> None:
    assert plane.send("POST", "/runtimes/r1/precision-choices", body).status_code in (400, 422)
