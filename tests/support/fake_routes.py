"""The routes of the fake control plane: which call of its parts answers which request."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from hmi_api.internal.catalog import (
    AdapterETags,
    AdapterKeys,
    AdapterRecord,
    ClusterRegistration,
    DomainRecord,
    PublishAgain,
    PublishedAgain,
    Revocation,
)
from hmi_api.internal.precision import EngineReports, PrecisionRequest
from hmi_api.internal.refreshes import RestoredTable, RestoreTable
from hmi_api.internal.runs import ArtifactCommit, RunCreate, RunFailure, RunPods, RunProgress, RunResult
from hmi_api.internal.runtimes import Heartbeat, RuntimeRegistration
from hmi_api.internal.window_counts import DEFAULT_WINDOWS_READ, WindowCountReport

if TYPE_CHECKING:
    from fake_control_plane import FakeControlPlane


@dataclass(frozen=True)
class Request:
    """A request as it arrived; ``path`` begins after ``/internal/v1`` and has no query."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    token: str | None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Call:
    """A request with the parts of its path."""

    request: Request
    kind: str = ""
    namespace: str = ""
    name: str = ""
    tenant: str = ""
    run: str = ""
    runtime: str = ""
    digits: str = ""
    file: str = ""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    def query(self, name: str) -> str | None:
        return self.request.query.get(name)


def _table(plane: FakeControlPlane, call: Call) -> dict[str, Any]:
    return plane.catalog.domains if call.kind == "domains" else plane.catalog.adapters


def _view(plane: FakeControlPlane, call: Call) -> BaseModel:
    if call.kind == "domains":
        view = plane.catalog.domain_view(call.key)
        has_version = view.current is not None and call.query("lookups") == "true"
        lookups = plane.windows.lookups_of(call.key, view.current.version) if has_version else None
        with_tree = view.current is not None and call.query("tree") == "true"
        tree = plane.windows.tree_of(call.key) if with_tree else None
        return view.model_copy(update={"lookups": lookups, "tree": tree})
    return plane.catalog.adapter_view(call.key, running=len(plane.runtimes.running))


def _declare(plane: FakeControlPlane, call: Call) -> None:
    type_ = DomainRecord if call.kind == "domains" else AdapterRecord
    plane.catalog.declare(_table(plane, call), call.key, type_.model_validate_json(call.request.body))


def _etags(plane: FakeControlPlane, call: Call, wanted: AdapterKeys) -> AdapterETags:
    known = plane.catalog.adapters
    return AdapterETags(etags={key: plane.catalog.etag(key) for key in wanted.keys if key in known})


def _upload(plane: FakeControlPlane, call: Call) -> None:
    plane.catalog.require_open(call.run)
    plane.catalog.artifacts.upload(call.run, call.digits, call.request.body)


def _commit(plane: FakeControlPlane, call: Call, commit: ArtifactCommit) -> BaseModel:
    plane.catalog.require_open(call.run)
    return plane.catalog.artifacts.commit(call.run, commit.manifest)


def _read_file(plane: FakeControlPlane, call: Call) -> bytes:
    used = plane.catalog.artifacts_of(call.run)
    return plane.catalog.artifacts.read(call.run, used, call.digits, call.file)


_Handler = Callable[..., Any]


def _route(method: str, path: str, type_: type[BaseModel] | None, handler: _Handler) -> Any:
    path = path.replace("{kind}", "(?P<kind>domains|adapters)").replace("{file}", "(?P<file>.+)")
    path = path.replace("{key}", "{namespace}/{name}")
    path = re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", path)
    return re.compile(f"{method} {path}"), type_, handler


ROUTES: list[tuple[re.Pattern[str], Any, _Handler]] = [
    _route("PUT", "/cluster", ClusterRegistration, lambda plane, call, body: plane.claim(body)),
    _route("PUT", "/tenants/{tenant}", None, lambda plane, call: plane.catalog.tenants.add(call.tenant)),
    _route("POST", "/adapters/etags", AdapterKeys, _etags),
    _route("GET", "/{kind}", None, lambda plane, call: plane.catalog.page(
        _table(plane, call), call.query("cursor"), call.query("domain"))),
    _route("PUT", "/{kind}/{key}", None, _declare),
    _route("GET", "/{kind}/{key}", None, _view),
    _route("DELETE", "/{kind}/{key}", None, lambda plane, call: plane.catalog.delete(
        _table(plane, call), call.key, call.query("uid"))),
    _route("POST", "/{kind}/{key}/publish-again", PublishAgain, lambda plane, call, body: PublishedAgain(
        version=plane.catalog.publish_again(_table(plane, call), call.key, body))),
    _route("GET", "/domains/{key}/refreshes", None,
        lambda plane, call: plane.catalog.refreshes.view(call.key)),
    _route("POST", "/domains/{key}/restore-table", RestoreTable, lambda plane, call, body: RestoredTable(
        version=plane.catalog.refreshes.restore(call.key, body))),
    _route("PUT", "/adapters/{key}/revocation", Revocation,
        lambda plane, call, body: plane.catalog.revoke(call.key, body)),
    _route("DELETE", "/adapters/{key}/revocation", None, lambda plane, call: plane.catalog.restore(call.key)),
    _route("POST", "/runs", RunCreate, lambda plane, call, body: plane.catalog.create_run(body)),
    _route("GET", "/runs/{run}", None, lambda plane, call: plane.catalog.run(call.run)),
    _route("PUT", "/runs/{run}/pods", RunPods,
        lambda plane, call, body: plane.catalog.record_pods(call.run, body.pods)),
    _route("GET", "/runs/{run}/window-counts", None, lambda plane, call: plane.windows.read(
        call.run,
        int(call.query("most") or DEFAULT_WINDOWS_READ),
        children=call.query("children") == "true")),
    _route("POST", "/runs/{run}/progress", RunProgress,
        lambda plane, call, body: plane.catalog.report_progress(call.run, body)),
    _route("POST", "/runs/{run}/complete", RunResult,
        lambda plane, call, body: plane.catalog.complete_run(call.run, body)),
    _route("POST", "/runs/{run}/fail", RunFailure,
        lambda plane, call, body: plane.catalog.fail_run(call.run, body)),
    _route("PUT", "/artifacts/{run}/files/{digits}", None, _upload),
    _route("POST", "/artifacts/{run}", ArtifactCommit, _commit),
    _route("GET", "/artifacts/{run}/{digits}/{file}", None, _read_file),
    _route("PUT", "/runtimes/{runtime}", RuntimeRegistration,
        lambda plane, call, body: plane.runtimes.register(call.runtime, body)),
    _route("DELETE", "/runtimes/{runtime}", None,
        lambda plane, call: plane.runtimes.deregister(call.runtime)),
    _route("POST", "/runtimes/{runtime}/heartbeat", Heartbeat,
        lambda plane, call, body: plane.runtimes.heartbeat(call.runtime, body)),
    _route("POST", "/runtimes/{runtime}/window-counts", WindowCountReport,
        lambda plane, call, body: plane.windows.record(body)),
    _route("POST", "/runtimes/{runtime}/precision-choices", PrecisionRequest,
        lambda plane, call, body: plane.runtimes.record_precision(body)),
    _route("PUT", "/runtimes/{runtime}/engines", EngineReports,
        lambda plane, call, body: plane.runtimes.report_engines(call.runtime, body)),
    _route("GET", "/runtimes/{runtime}/desired", None, lambda plane, call: plane.runtimes.desired_state(
        call.runtime, int(call.query("since") or 0))),
]  # fmt: skip
