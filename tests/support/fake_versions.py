"""What the fake catalog stores of Domains and TaskAdapters, and the versions that results of runs become."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.internal.catalog import (
    AdapterRecord,
    AdapterVersionView,
    DomainRecord,
    DomainVersionView,
    LoadError,
    Revocation,
)
from hmi_api.internal.client import Refused
from hmi_api.internal.refreshes import TableChange
from hmi_api.internal.runs import DomainRunSpec, RunResult, RunView


@dataclass
class StoredDomain:
    """A Domain, all its versions and the current one."""

    record: DomainRecord
    versions: list[DomainVersionView] = field(default_factory=list)
    current: DomainVersionView | None = None
    last_version: int = 0
    order: int = 0
    changes: dict[int, TableChange] = field(default_factory=dict)
    """By version: how its table came from the one before it."""
    created: dict[int, datetime] = field(default_factory=dict)

    @property
    def tables(self) -> list[DomainVersionView]:
        """The versions with the layers and the spec of the current one, the newest first."""
        current = self.current
        if current is None:
            return []
        same = [
            one
            for one in self.versions
            if (one.layers, one.spec_digest) == (current.layers, current.spec_digest)
        ]
        return same[::-1]


@dataclass
class StoredAdapter:
    """A TaskAdapter, all its versions and the current one, and the ids of the runtimes it is placed on."""

    record: AdapterRecord
    versions: list[AdapterVersionView] = field(default_factory=list)
    current: AdapterVersionView | None = None
    last_version: int = 0
    order: int = 0
    placed: list[str] = field(default_factory=list)
    revoked_at: datetime | None = None
    withdrawn: Revocation | None = None


@dataclass(frozen=True)
class LoadReport:
    """A runtime's last report on one version: loaded, or why not; ``order`` grows from report to report."""

    runtime: str
    version: int
    failure: LoadError | None
    order: int
    serves: bool
    """Despite a failure, if it was to take another table."""


def domain_version(row: StoredDomain, run: RunView, result: RunResult) -> DomainVersionView:
    """Return the version that a domain run's result becomes."""
    spec = run.spec
    assert isinstance(spec, DomainRunSpec)
    own = next(of_kind(result, ArtifactKind.LAYERS), None)
    layers = own or (spec.parent.layers if spec.parent else None)
    split = result.split or spec.spec.split or (spec.parent.split if spec.parent else None)
    if layers is None or split is None:
        raise Refused(400, "IncompleteResult", "A domain run without a parent publishes layers.")
    return DomainVersionView(
        version=row.last_version + 1,
        spec_digest=run.spec_digest,
        base=spec.spec.base_model,
        base_digest=result.base_digest,
        split=split,
        layers=layers,
        tables=[*of_kind(result, ArtifactKind.TABLE), *(spec.parent.tables if spec.parent else [])],
        on_miss=spec.spec.plot.on_miss,
        entries=result.entries or 0,
        coverage=result.coverage or 0.0,
        metrics=result.metrics,
        data=result.data,
    )


def adapter_version(
    row: StoredAdapter, domain: StoredDomain | None, run: RunView, result: RunResult
) -> AdapterVersionView | None:
    """Return the version of a result; None for a result without an adapter."""
    assert not isinstance(run.spec, DomainRunSpec)
    artifact = next(of_kind(result, ArtifactKind.ADAPTER), None)
    layers_digest = result.layers_digest or run.spec.domain.layers.digest
    if result.gate_passed and artifact is None:
        raise Refused(400, "IncompleteResult", "An adapter run publishes an adapter.")
    if result.gate_passed and not has_layers(domain, layers_digest):
        raise Refused(400, "UnknownLayers", f"Domain {row.record.domain} has no such layers.")
    if artifact is None:
        return None
    return AdapterVersionView(
        version=row.last_version + 1,
        spec_digest=run.spec_digest,
        artifact=artifact,
        layers_digest=layers_digest,
        labels=result.labels,
        metrics=result.metrics,
        data=result.data,
        gate_passed=result.gate_passed,
    )


def has_layers(domain: StoredDomain | None, layers_digest: str) -> bool:
    """Return whether a version of the Domain has these layers."""
    return domain is not None and any(one.layers.digest == layers_digest for one in domain.versions)


def found(table: dict[str, Any], key: str, kind: str) -> Any:
    """Return a stored resource; refuse if it is unknown."""
    if key not in table:
        raise Refused(404, f"Unknown{kind}", f"There is no {kind} {key}.")
    return table[key]


def of_kind(result: RunResult, kind: ArtifactKind) -> Iterator[ArtifactRef]:
    """Yield the artifacts of one kind."""
    return (ref for ref in result.artifacts if ref.kind is kind)


def refs_of(version: DomainVersionView | AdapterVersionView) -> Sequence[ArtifactRef]:
    """Return the artifacts of a version."""
    if isinstance(version, AdapterVersionView):
        return [version.artifact]
    return [version.layers, *version.tables]
