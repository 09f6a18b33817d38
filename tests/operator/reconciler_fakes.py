"""A control plane and training jobs in memory, which write down what they are asked."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hmi_api.errors import InvalidInput, NotReady
from hmi_api.internal.catalog import (
    AdapterView,
    ClusterClaimed,
    Declared,
    DeclaredPage,
    DomainRecord,
    DomainView,
    PublishAgain,
    Revocation,
)
from hmi_api.internal.runs import RunCreate, RunFailure, RunPod, RunState, RunView
from hmi_api.names import Tenant
from hmi_operator.planning import JobView, PodProblem


@dataclass
class Catalog:
    """A control plane that writes down what it is asked."""

    asked: list[str] = field(default_factory=list)
    tenants: set[str] = field(default_factory=set)
    domains: dict[str, DomainView] = field(default_factory=dict)
    adapters: dict[str, AdapterView] = field(default_factory=dict)
    runs: dict[str, RunView] = field(default_factory=dict)
    state: RunState = RunState.PENDING
    kept: dict[str, int] = field(default_factory=dict)
    """Numbers under which versions are published again, by the digest of their spec."""
    known_seconds: float = 0.0
    inherited: bool = False
    pods: dict[str, Any] = field(default_factory=dict)

    async def ensure_tenant(self, tenant: Tenant) -> None:
        self.asked.append("ensure_tenant")
        self.tenants.add(tenant)

    async def declare(self, kind: str, key: str, record: Any) -> None:
        self.asked.append("declare")
        if record.tenant not in self.tenants:
            raise InvalidInput("UnknownTenant", "There is no such tenant.")
        if kind == "Domain":
            self._declare_domain(key, record)
            return
        known = self.adapters.get(key) or AdapterView(record=record)
        self.adapters[key] = known.model_copy(update={"record": record})

    def _declare_domain(self, key: str, record: DomainRecord) -> None:
        known = self.domains.get(key)
        adopts = known is not None and known.record.base_uri == record.base_uri
        self.domains[key] = DomainView(record=record, current=known.current if known and adopts else None)

    async def domain(self, key: str) -> DomainView | None:
        self.asked.append("domain")
        return self.domains.get(key)

    async def adapter(self, key: str) -> AdapterView | None:
        self.asked.append("adapter")
        return self.adapters.get(key)

    async def adapter_etags(self, keys: Any) -> dict[str, str]:
        raise NotImplementedError

    async def claim(self, cluster: str) -> ClusterClaimed | None:
        return ClusterClaimed(known_seconds=self.known_seconds, inherited=self.inherited)

    async def list_records(self, kind: str, cursor: str | None = None, *, domain: Any = None) -> DeclaredPage:
        views: dict[str, Any] = {"Domain": self.domains, "TaskAdapter": self.adapters}[kind]
        rows = [
            Declared(key=key, uid=view.record.uid)
            for key, view in sorted(views.items())
            if key > (cursor or "") and (domain is None or view.record.domain == domain)
        ]
        return DeclaredPage(items=rows[:1], next_cursor=rows[0].key if len(rows) > 1 else None)

    async def delete(self, kind: str, key: str, uid: str | None = None) -> None:
        table: dict[str, Any] = self.domains if kind == "Domain" else self.adapters
        if uid not in (None, table[key].record.uid):
            return
        if kind == "Domain" and any(
            view.record.domain == key and not view.withdrawn for view in self.adapters.values()
        ):
            raise InvalidInput("DomainInUse", "Delete the TaskAdapters first.")
        del table[key]

    async def publish_again(self, kind: str, key: str, wanted: PublishAgain) -> int | None:
        self.asked.append("publish_again")
        return self.kept.get(wanted.spec_digest)

    async def create_run(self, request: RunCreate) -> RunView:
        self.asked.append("create_run")
        run_id = f"run-{len(self.runs) + 1}"
        asked = request.model_dump(exclude={"tenant", "spec"})
        for run in self.runs.values():
            if run.model_dump(include=set(asked)) == asked:
                return run
        self.runs[run_id] = RunView(id=run_id, state=self.state, spec=request.spec, **asked)
        return self.runs[run_id]

    async def run(self, run_id: str) -> RunView | None:
        self.asked.append("run")
        return self.runs.get(run_id)

    async def revoke(self, key: str, revocation: Revocation) -> None:
        view = self.adapters[key]
        update = {"revoked_at": view.revoked_at or datetime.now(UTC), "withdrawn": revocation.withdraw}
        update |= {"current": None} if revocation.withdraw else {}
        self.adapters[key] = view.model_copy(update=update)

    async def restore(self, key: str) -> None:
        update = {"revoked_at": None, "withdrawn": False}
        self.adapters[key] = self.adapters[key].model_copy(update=update)

    async def record_pods(self, run_id: str, pods: Any) -> None:
        self.asked.append("record_pods")
        self.pods[run_id] = pods

    async def fail_run(self, run_id: str, failure: RunFailure) -> None:
        self.runs[run_id] = self.runs[run_id].model_copy(update={"state": RunState.FAILED})


@dataclass
class Jobs:
    """Processes that begin and never end, unless they cannot be made."""

    started: set[str] = field(default_factory=set)
    erased: list[str] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)
    refused: PodProblem | None = None
    pods: tuple[RunPod, ...] = ()

    async def start(self, run: RunView) -> None:
        if self.refused is None:
            self.started.add(run.id)

    async def observe(self, run: RunView) -> JobView | None:
        if self.refused is not None:
            return JobView(False, problem=self.refused)
        return JobView(True, pods=self.pods) if run.id in self.started else None

    async def stop(self, run_id: str, namespace: str) -> None:
        self.started.discard(run_id)

    async def delete_all(self, uid: str, namespace: str) -> None:
        if namespace in self.closed:
            raise NotReady("Forbidden", "There are no rights in that namespace.")
        self.erased.append(uid)
