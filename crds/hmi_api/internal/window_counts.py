"""Types of the internal API for the windows that traffic looks up: how often, in which Domain, for whom.

    POST   /runtimes/{id}/window-counts              WindowCountReport; idempotent    -> 204
    GET    /runs/{id}/window-counts?most=N&children=true
                                                     -> WindowCounts, or 404

A window is three token ids. Its key is the number that ``hmi_runtime.models.windows.pack`` makes of them, so
keys of base models with different vocabularies must not be mixed: counts belong to a layers digest.

Runtimes report which tenant asked for a window. A run is never told: the control plane gives it the windows
of its Domain's own tenant, and of other tenants only those that several of them asked for. With ``children``
it gets what the Domain's children with the same layers looked up, too: trainers of an older version refuse
fields that they do not know, so they do not ask.
"""

import base64
import binascii
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator
from pydantic_core import PydanticCustomError

from hmi_api.internal.storable import Count, DigestText, LargeCount, ResourceKey, Uid, WireModel

MAX_WINDOWS_READ = 1_000_000
"""The largest number of windows that a run can read."""
DEFAULT_WINDOWS_READ = 200_000
"""How many windows a run reads unless it says otherwise."""
MAX_REPORTED_WINDOWS = 1 << 17
"""The largest number of windows in one report."""
MAX_REPORTED_DOMAINS = 10_000
"""The largest number of versions of Domains in one report."""
_BYTES = 8


def _decoded(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PydanticCustomError("base64", "Value should be base64") from error


Int64Array = Annotated[
    bytes,
    BeforeValidator(_decoded),
    PlainSerializer(lambda value: base64.b64encode(value).decode(), return_type=str, when_used="json"),
]
"""Numbers of 64 bits, little-endian (numpy's ``<i8``); base64 in JSON."""


class WindowArray(WireModel):
    """Windows and how often each was looked up; ``keys`` and ``counts`` have the same length N."""

    keys: Int64Array = Field(default=b"", description="Keys (N,) int64, little-endian; each occurs once.")
    counts: Int64Array = Field(default=b"", description="Counts (N,) int64, little-endian, at least 1.")

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if len(self.keys) % _BYTES or len(self.keys) != len(self.counts):
            raise PydanticCustomError("paired_arrays", "There should be as many 64-bit counts as keys")
        return self

    @property
    def windows(self) -> int:
        """How many different windows there are."""
        return len(self.keys) // _BYTES


class TenantWindows(WindowArray):
    """The windows that one tenant's texts had."""

    tenant_id: Annotated[Uid, Field(min_length=1)]


class DomainWindows(WireModel):
    """What a runtime counted in one version of a Domain since its last report."""

    domain: ResourceKey
    version: Count
    layers_digest: DigestText
    lookups: LargeCount = Field(description="Windows looked up, those included that are not listed below.")
    hits: LargeCount = Field(description="Of these, windows that were found whole in a table.")
    tenants: list[TenantWindows] = Field(
        default_factory=list, description="Each tenant's most frequent windows; a tenant occurs once."
    )


class WindowCountReport(WireModel):
    """What a runtime counted since its last report.

    It is sent again, unchanged, until it is acknowledged. ``sequence`` grows with each new report of an
    incarnation; a report that was recorded already is acknowledged and not counted again.
    """

    incarnation: Uid
    sequence: LargeCount
    domains: list[DomainWindows] = Field(max_length=MAX_REPORTED_DOMAINS)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if sum(tenant.windows for domain in self.domains for tenant in domain.tenants) > MAX_REPORTED_WINDOWS:
            raise PydanticCustomError("too_many_windows", "There should be fewer windows in a report")
        return self


class DomainLookups(WireModel):
    """The windows that traffic looked up in the current version of a Domain since it was published."""

    lookups: LargeCount
    hits: LargeCount = Field(description="Of these, windows that were found whole in a table.")
    hit_rate: float | None = Field(default=None, description="hits / lookups; None without lookups.")

    @classmethod
    def of(cls, lookups: int, hits: int) -> Self:
        """Return the statistics of counted windows."""
        return cls(lookups=lookups, hits=hits, hit_rate=hits / lookups if lookups else None)

    @property
    def misses(self) -> int:
        """Windows that were in no table as a whole."""
        return self.lookups - self.hits

    @property
    def miss_rate(self) -> float | None:
        """misses / lookups; None without lookups."""
        return self.misses / self.lookups if self.lookups else None


class WindowCounts(WindowArray):
    """The windows of a Domain's traffic that a run of this Domain may read, the most frequent first.

    With children, the traffic of children whose current version has the same layers is counted as well.

    The traffic of the Domain's own tenant counts in full. A window of other tenants is included only if at
    least ``least_tenants`` of them asked for it. Counts cover the last ``days`` days.
    """

    layers_digest: DigestText = Field(description="Of the Domain's current version; '' if it has none.")
    least_tenants: Count
    days: Count
    belongs_to_child: Int64Array = Field(
        default=b"",
        description="With children: keys (M,) int64, little-endian, of admitted windows that one child alone "
        "looked up, and that its own next refresh takes in; not among ``keys``. At most ``most``.",
    )
    total: LargeCount = Field(default=0, description="Sum of the counts of all admitted windows.")
    admitted: LargeCount = Field(default=0, description="Admitted windows; more than N if ``most`` cut some.")
    statistics: DomainLookups | None = Field(
        default=None, description="Of the Domain's current version; None if it has none."
    )
