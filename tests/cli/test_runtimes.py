"""``hmi get runtimes`` and ``hmi describe runtime``, of a real control plane."""

from collections.abc import Iterator

import httpx
import pytest
from served_command import Run, Served

from hmi_api.internal.precision import EngineReport, EngineReports, MeasuredCandidate, PrecisionChoice
from hmi_api.internal.runtimes import RuntimeRegistration

INT8 = MeasuredCandidate(
    precision="int8", kernel="onednn", milliseconds=1.25, cosine=0.98, agreement=0.91, refused="cosine 0.98"
)
BFLOAT16 = MeasuredCandidate(
    precision="bfloat16", kernel="onednn", milliseconds=2.5, cosine=0.99995, agreement=0.999
)
FLOAT32 = MeasuredCandidate(precision="float32", kernel="torch", milliseconds=9.0)


@pytest.fixture
def runtime(served: Served) -> Iterator[str]:
    """A runtime that has reported one base model."""
    root = f"{served.url}/internal/v1/runtimes/runtime-7"
    headers = {"Authorization": f"Bearer {served.home.internal_token()}"}
    registration = RuntimeRegistration(
        url="http://r7", device="cpu", capacity_bytes=3 << 30, incarnation="one"
    )
    choice = PrecisionChoice(
        precision="bfloat16",
        kernel="onednn",
        candidates=[INT8, BFLOAT16, FLOAT32],
        sample="windows of shop/hotel@1",
    )
    engine = EngineReport(
        base="wheel://base",
        base_digest="sha256:b",
        split=3,
        requested="auto",
        source="Pool",
        recorded=True,
        choice=choice,
    )
    reports = EngineReports(incarnation="one", pool="cpu", processor="AuthenticAMD avx2", engines=[engine])
    for path, body in (("", registration), ("/engines", reports)):
        content = body.model_dump_json(by_alias=True).encode()
        answer = httpx.put(
            root + path, content=content, headers={**headers, "Content-Type": "application/json"}
        )
        assert answer.status_code == 204
    yield "runtime-7"
    httpx.delete(root, headers=headers)


def test_describe_shows_what_was_chosen_and_why(hmi: Run, runtime: str) -> None:
    code, out, _ = hmi("describe", "runtime", runtime)
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        "Pool: cpu",
        "Processor: AuthenticAMD avx2",
        "wheel://base, split at 3",
        "precision: bfloat16/onednn (HMI_PRECISION auto)",
        "compared on: windows of shop/hotel@1",
        "int8/onednn 1.25 0.9800 0.910 refused: cosine 0.98",
        "bfloat16/onednn 2.50 1.0000 0.999 taken",
        "float32/torch 9.00 - - slower",
    ):
        assert line in lines
    assert hmi("describe", f"runtimes/{runtime}") == hmi("describe", "runtime")


def test_get_lists_runtimes_with_their_precision(hmi: Run, runtime: str) -> None:
    code, out, _ = hmi("get", "runtimes")
    assert code == 0
    header, row = out.splitlines()
    assert header.split()[:3] == ["NAME", "POOL", "STATE"]
    assert row.split()[:5] == [runtime, "cpu", "Running", "cpu", "bfloat16/onednn"]
    assert '"processor": "AuthenticAMD avx2"' in hmi("get", "runtime", runtime, "-o", "json")[1]


def test_an_unknown_runtime_is_an_error_that_names_those_there_are(hmi: Run, runtime: str) -> None:
    code, _, err = hmi("describe", "runtime", "elsewhere")
    assert code == 1
    assert 'there is no runtime "elsewhere"' in err
    assert runtime in err
    assert hmi("get", "runtimes", "-w")[0] == 2


def test_no_runtimes_are_said_so(hmi: Run) -> None:
    code, _, err = hmi("describe", "runtime")
    assert (code, err) == (0, "No runtimes found.\n")
