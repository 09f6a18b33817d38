"""Types of the internal API for the precision and kernel of a runtime's frozen upper layers.

POST /runtimes/{id}/precision-choices            PrecisionRequest                 -> RecordedPrecision
PUT  /runtimes/{id}/engines                      EngineReports                    -> 204

A runtime asks which choice its pool has recorded, proposes its own if there is none, and takes what is
recorded then: the first proposal is kept, so that all replicas of a pool compute alike. An older control
plane has neither call and answers 404; an older runtime makes neither.
"""

from typing import Literal

from pydantic import Field, StrictBool

from hmi_api.internal.storable import Count, DigestText, Finite, Label, Message, Text, Uid, WireModel, Word

PrecisionName = Literal["float32", "bfloat16", "int8"]
PrecisionSetting = Literal["auto", "float32", "bfloat16", "int8"]
"""Values of ``HMI_PRECISION``."""

Source = Literal["Only", "Measured", "Pool", "Cache"]
"""Where a runtime's precision choice is from.

``Only``: this machine runs nothing else. ``Measured``: this runtime measured when it loaded the base model.
``Pool``: a runtime of the pool recorded it. ``Cache``: this runtime used it before, and the pool's records
could not be read.
"""

MAX_CANDIDATES = 16
MAX_ENGINES = 200
"""Most engines (base models at a split) that one runtime reports."""


class PrecisionKey(WireModel):
    """What a precision choice is for. Each pool, processor and setting has a choice of its own."""

    pool: Label = Field(description="Pool of the runtime, HMI_POOL.")
    requested: Word = Field(description="HMI_PRECISION of the runtime.")
    base_digest: DigestText = Field(description="Digest of the base model's weights.")
    split: Count
    processor: Text = Field(max_length=400, description="Vendor, instructions and torch version.")


class MeasuredCandidate(WireModel):
    """What a runtime measured of one kernel."""

    precision: Word
    kernel: Word
    milliseconds: Finite | None = Field(
        default=None, description="Least time of the timed layers on the sample; None if it was not timed."
    )
    cosine: Finite | None = Field(
        default=None, description="Mean cosine of last hidden states with float32's; None if not compared."
    )
    agreement: Finite | None = Field(
        default=None, description="Share of the sample's predictions that equal float32's, 0 to 1."
    )
    refused: Message = Field(default="", description="Why it may not be taken; empty if it may.")


class PrecisionChoice(WireModel):
    """A chosen precision and kernel, and the measurements that it follows from."""

    precision: Word
    kernel: Word
    candidates: list[MeasuredCandidate] = Field(default_factory=list, max_length=MAX_CANDIDATES)
    sample: Text = Field(
        default="", max_length=300, description="Domain version whose windows were compared, or random words."
    )


class PrecisionRequest(WireModel):
    """A request for the recorded choice of ``key``; ``proposal`` is recorded if there is none."""

    key: PrecisionKey
    proposal: PrecisionChoice | None = None


class RecordedPrecision(WireModel):
    """The recorded choice; None if there is none."""

    choice: PrecisionChoice | None = None


class EngineReport(WireModel):
    """The precision that a runtime computes one base model's upper layers in."""

    base: Text = Field(max_length=500, description="URI of the base model.")
    base_digest: DigestText
    split: Count
    requested: Word = Field(description="HMI_PRECISION.")
    source: Source
    recorded: StrictBool = Field(description="Whether the control plane has this choice for the pool.")
    choice: PrecisionChoice


class EngineReports(WireModel):
    """All engines of a runtime; replaces its earlier report. Ignored from another incarnation."""

    incarnation: Uid
    pool: Label
    processor: Text = Field(max_length=400)
    engines: list[EngineReport] = Field(max_length=MAX_ENGINES)
