"""The Domain resource: lower layers adapted to a corpus, materialised as a lookup table."""

import json
import re
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from hmi_api.names import DomainKey, domain_key
from hmi_api.resources.cel import immutable, rule, rules
from hmi_api.resources.common import (
    DNS_LABEL,
    ApiModel,
    CommonStatus,
    CustomResource,
    DataSource,
    ObjectRef,
    Resources,
)


class OnMiss(StrEnum):
    """What a runtime does with a window that no table contains."""

    COMPUTE = "Compute"
    BACKOFF = "Backoff"


class TableDtype(StrEnum):
    """How a table's values are stored."""

    FLOAT16 = "Float16"
    INT8 = "Int8"


def _cron_field(value: str) -> str:
    item = rf"(\*|{value}(-{value})?)(/[1-9][0-9]?)?"
    return f"{item}(,{item})*"


_CRON_FIELDS = (
    "[0-5]?[0-9]",
    "1?[0-9]|2[0-3]",
    "0?[1-9]|[12][0-9]|3[01]",
    "0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)",
    "[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat)",
)
CRON = "^(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|"
CRON += " +".join(_cron_field(f"({values})") for values in _CRON_FIELDS) + ")$"
"""Five fields: minute, hour, day of the month, month and day of the week; or a word for one of them."""


class BaseModelRef(ApiModel):
    """The pretrained model that a Domain starts from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!self.uri.contains('://') || self.uri.matches('^(hf|wheel|file)://.')",
                "a base model is a local folder, hf://owner/name or wheel://package; "
                "mount others as a folder",
                ".uri",
                holds=lambda base: (
                    "://" not in base["uri"] or bool(re.match("(hf|wheel|file)://.", base["uri"]))
                ),
            )
        )
    )

    uri: str = Field(
        min_length=1,
        max_length=2048,
        description="A local folder, hf://name (hub or its cache) or wheel://package (a Python wheel).",
    )
    revision: str | None = Field(
        default=None, min_length=1, max_length=253, description="Revision for hf://; ignored elsewhere."
    )


class Bridge(ApiModel):
    """The narrow attention block that connects distant tokens, as windows do not."""

    heads: int = Field(default=4, ge=0, le=32, description="Attention heads; 0 for no bridge.")
    head_size: int = Field(default=24, ge=8, le=128, description="Width of one head.")


class DomainTraining(ApiModel):
    """How the lower layers are distilled on the corpus."""

    steps: int = Field(
        default=400,
        ge=0,
        le=1_000_000,
        description="Optimiser steps; 0 keeps the parent's layers and only builds a table.",
    )
    batch_size: int = Field(default=24, ge=1, le=4096, description="Rows a step.")
    learning_rate: float = Field(
        default=1e-3, gt=0, le=1, description="Peak rate of the lower layers; the bridge's is three times it."
    )
    max_length: int = Field(default=128, ge=8, le=8192, description="Tokens a row is cut to.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Same seed and data, same result.")


DEFAULT_HISTORY = 5
"""Versions of a table that are kept, the current one included."""


class Refresh(ApiModel):
    """When a table is rebuilt from the windows that traffic looked up: either field is enough."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                f"!has(self.schedule) || self.schedule.matches({json.dumps(CRON)})",
                'a schedule has five fields (minute, hour, day, month, weekday) as in "0 3 * * *", '
                "or is a word such as @daily",
                ".schedule",
                holds=lambda refresh: (
                    "schedule" not in refresh or bool(re.fullmatch(CRON, refresh["schedule"]))
                ),
            )
        )
    )

    schedule: str | None = Field(
        default=None,
        max_length=253,
        description='When to refresh: five fields of cron, UTC, such as "0 3 * * *", or @daily.',
    )
    min_miss_rate: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Miss rate of at least 10,000 lookups above which the table is refreshed, at most every "
        "10 minutes, whatever the schedule; 1 for on schedule only.",
    )
    history_limit: int = Field(
        default=DEFAULT_HISTORY,
        ge=1,
        le=100,
        exclude_if=lambda value: value == DEFAULT_HISTORY,  # earlier versions do not know the field
        description="Versions of the table that are kept, the current one included, for rollbacks.",
    )


class Plot(ApiModel):
    """The precomputed lookup table of a Domain."""

    max_entries: int = Field(
        default=200_000, ge=1, le=2_000_000_000, description="Largest number of windows in the table."
    )
    min_frequency: int = Field(
        default=2,
        ge=1,
        le=2_000_000_000,
        description="How often a window must occur in the corpus to be stored.",
    )
    dtype: TableDtype = Field(default=TableDtype.FLOAT16, description="How values are stored.")
    on_miss: OnMiss = Field(
        default=OnMiss.COMPUTE,
        description="For a window that no table contains. Compute: run the layers for it (exact). "
        "Backoff: use its bigram or unigram, from this table or a parent's (approximate).",
    )
    refresh: Refresh | None = Field(
        default=None,
        exclude_if=lambda value: value is None,  # earlier versions do not know null
        description="When the table is rebuilt from traffic; never when absent.",
    )


class Sharing(ApiModel):
    """Which other namespaces may use a Domain for TaskAdapters and child Domains."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.namespaces) || "
                f"self.namespaces.all(name, name == '*' || name.matches('{DNS_LABEL}'))",
                'each is the name of a namespace, or "*" alone for all; '
                "patterns such as team-* match nothing",
                ".namespaces",
                holds=lambda sharing: all(
                    name == "*" or re.fullmatch(DNS_LABEL, name) for name in sharing.get("namespaces", [])
                ),
            )
        )
    )

    namespaces: list[Annotated[str, Field(max_length=63)]] = Field(
        default_factory=list,
        max_length=1000,
        description='Namespaces besides its own; "*" for all. '
        "TaskAdapters of a namespace that is removed are served for a grace time.",
    )


class DomainSpec(ApiModel):
    """What a tenant declares of a Domain. ``baseModel`` and ``split`` cannot be changed later."""

    model_config = ConfigDict(
        json_schema_extra=rules(immutable("baseModel"), immutable("split", optional=True))
    )

    base_model: BaseModelRef = Field(description="Pretrained model. Immutable.")
    parent_ref: ObjectRef | None = Field(
        default=None, description="Parent in the knowledge tree; the base model's own layers when absent."
    )
    split: int | None = Field(
        default=None,
        ge=1,
        le=512,
        description="Layers that become a table; when absent, the parent's split, else half of the layers. "
        "Immutable.",
    )
    corpus: list[DataSource] = Field(
        min_length=1, max_length=1000, description="Unlabelled text of the domain."
    )
    bridge: Bridge = Field(default_factory=Bridge, description="Mixing step after the lookup.")
    training: DomainTraining = Field(default_factory=DomainTraining, description="Distillation.")
    plot: Plot = Field(default_factory=Plot, description="The lookup table.")
    sharing: Sharing = Field(
        default_factory=Sharing, description="Which other namespaces may use this Domain."
    )
    resources: Resources = Field(default_factory=Resources, description="For the training Job.")
    suspend: bool = Field(
        default=False, description="True: start no training; published versions keep serving."
    )


class TableStatus(ApiModel):
    """A version of the table that is kept."""

    version: int = Field(description="Version of the Domain that has it.")
    entries: int = Field(description="Windows in the table.")
    created: str = Field(description="When the version was published, RFC 3339, UTC.")
    cause: str | None = Field(
        default=None, description="Schedule, MissRate or Request of the refresh that made it."
    )
    windows_in: int | None = Field(default=None, description="Windows that the refresh added.")
    windows_out: int | None = Field(default=None, description="Windows that the refresh removed.")
    hit_rate_before: float | None = Field(
        default=None, description="Share of lookups that hit the table before it."
    )
    restored: int | None = Field(default=None, description="Version that a rollback went back to.")

    def sentence(self) -> str:
        """Return what made this version of the table, in words."""
        if self.restored is not None:
            return f"Version {self.version} has the table of version {self.restored} again."
        if self.windows_in is None or self.windows_out is None:
            return f"Version {self.version} was trained."
        before = (
            f"; {self.hit_rate_before:.1%} of lookups hit the table before"
            if self.hit_rate_before is not None
            else ""
        )
        return (
            f"Version {self.version} has a refreshed table ({self.cause}): {self.windows_in:,} windows came "
            f"in, {self.windows_out:,} left, {self.entries:,} in all{before}."
        )


class RefreshStatus(ApiModel):
    """The refreshes of a table."""

    last_refresh: str | None = Field(default=None, description="When the table was last refreshed.")
    next_time: str | None = Field(default=None, description="When it is refreshed next, by schedule.")
    schedule: str | None = Field(default=None, description="The schedule that nextTime follows.")
    tables: list[TableStatus] = Field(default_factory=list, description="Kept versions, newest first.")


class TableLevelStatus(ApiModel):
    """A table in which windows are looked up."""

    domain: str | None = Field(default=None, description="namespace/name of its Domain, unless deleted.")
    entries: int | None = Field(default=None, description="Windows in it, if its version is kept.")
    bytes: int = Field(description="Size of its artifact.")


class SharedTableStatus(ApiModel):
    """What sharing the table with the Domains below saves."""

    domains: int = Field(description="Domains below whose current version has the same layers.")
    saved_bytes_at_most: int = Field(
        description="Most bytes that sharing can save: those of the table, times one less than the number of "
        "these Domains, as if each had stored all of its windows itself."
    )


class DomainStatus(CommonStatus):
    """What the reconciler reports of a Domain."""

    entries: int | None = Field(default=None, description="Windows in the table.")
    coverage: float | None = Field(
        default=None,
        description="Share of the held-out corpus's windows that the table contains, 0 to 1; after a "
        "refresh, of the lookups in the window counts.",
    )
    hit_rate: float | None = Field(
        default=None,
        description="Share of the lookups since this version was published that hit a table.",
    )
    refresh: RefreshStatus | None = Field(default=None, description="Refreshes, if plot.refresh is set.")
    levels: list[TableLevelStatus] = Field(
        default_factory=list,
        description="The tables that windows are looked up in: its own, then its ancestors'.",
    )
    shared: SharedTableStatus | None = Field(
        default=None,
        description="What is shared with the Domains below that have the same layers (training.steps: 0).",
    )


class Domain(CustomResource):
    """A Domain: a node of the knowledge tree."""

    kind: Literal["Domain"] = Field(default="Domain", description="Kind.")
    spec: DomainSpec = Field(description="Desired state.")
    status: DomainStatus = Field(default_factory=DomainStatus, description="Observed state.")

    @property
    def key(self) -> DomainKey:
        """``namespace/name``."""
        return domain_key(self.metadata.namespace, self.metadata.name)

    @property
    def parent_key(self) -> DomainKey | None:
        """Key of the parent that ``parentRef`` names, if any."""
        return self.spec.parent_ref.key(self.metadata.namespace) if self.spec.parent_ref else None

    def is_shared_with(self, namespace: str) -> bool:
        """Return whether resources of that namespace may use this Domain."""
        return namespace == self.metadata.namespace or not {"*", namespace}.isdisjoint(
            self.spec.sharing.namespaces
        )
