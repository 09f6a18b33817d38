"""A runtime process over HTTP, and a fake control plane that publishes the adapters that a test declares."""

from dataclasses import dataclass
from typing import Any

import httpx
from fake_control_plane import TOKEN, FakeControlPlane
from serving import LIMIT

from hmi_api.internal.catalog import AdapterRecord, DomainRecord
from hmi_api.internal.inference import InferReply
from hmi_api.internal.runs import RunCreate, RunResult
from hmi_api.internal.runtimes import AdapterServing, DomainServing, Heartbeat, LoadFailure
from hmi_api.names import digest_bytes


class PublishingControlPlane(FakeControlPlane):
    """The fake control plane, with the adapters that a test declares."""

    def serve(self, *adapters: AdapterServing, domains: tuple[DomainServing, ...]) -> None:
        """Publish these, and delete all other TaskAdapters, in one step."""
        with self.lock:
            for domain in domains:
                self._publish_domain(domain)
            for key in self.catalog.adapters.keys() - {adapter.key for adapter in adapters}:
                self.catalog.delete(self.catalog.adapters, key)
            for adapter in adapters:
                self._publish_adapter(adapter)

    def beats(self, since: int = 0) -> list[Heartbeat]:
        """Return the heartbeats, without the first ``since``."""
        return self.bodies("POST /runtimes/[^/]+/heartbeat", Heartbeat)[since:]

    def failures(self) -> list[LoadFailure]:
        """Return the failed loads that runtimes have reported."""
        return [failure for beat in self.beats() for failure in beat.failed]

    def _publish_domain(self, domain: DomainServing) -> None:
        version, (namespace, name) = domain.version, domain.key.split("/")
        row = self.catalog.domains.get(domain.key)
        published = [(one.layers, one.tables) for one in row.versions] if row is not None else []
        if (version.layers, version.tables) in published:
            return
        self.catalog.tenants.add(namespace)
        digest = digest_bytes("".join(one.digest for one in [version.layers, *version.tables]).encode())
        record = DomainRecord(
            uid=name, tenant=namespace, generation=1, spec_digest=digest, base_uri=version.base.uri
        )
        self.catalog.declare(self.catalog.domains, domain.key, record)
        spec = {"baseModel": version.base, "corpus": [{"uri": "c.jsonl"}], "split": version.split}
        artifacts = [version.layers, *version.tables]
        run = {"kind": "domain", "namespace": namespace, "name": name, "spec": spec}
        self._finish(record, run, artifacts=artifacts, base_digest=version.base_digest, split=version.split)

    def _publish_adapter(self, adapter: AdapterServing) -> None:
        tenant, name = adapter.key.split("/")
        row = self.catalog.adapters.get(adapter.key)
        if row is not None and row.current is not None:
            if row.current.artifact == adapter.artifact:
                return
            if row.current.version == adapter.version:  # another TaskAdapter of this name
                self.catalog.delete(self.catalog.adapters, adapter.key)
        self.catalog.tenants.add(tenant)
        record = AdapterRecord(
            uid=name,
            tenant=tenant,
            generation=1,
            spec_digest=adapter.artifact.digest,
            domain=adapter.domain,
            task_type=adapter.task_type,
        )
        self.catalog.declare(self.catalog.adapters, adapter.key, record)
        namespace, domain = adapter.domain.split("/")
        spec = {
            "domainRef": {"name": domain, "namespace": namespace},
            "task": {"type": adapter.task_type},
            "data": {"train": {"uri": "r.jsonl"}},
        }
        version = self.catalog.domains[adapter.domain].versions[adapter.domain_version - 1]
        run = {"kind": "adapter", "namespace": tenant, "name": name, "spec": spec, "domain": version}
        self._finish(record, run, artifacts=[adapter.artifact], base_digest="", labels=adapter.labels)

    def _finish(self, record: DomainRecord | AdapterRecord, spec: dict[str, Any], **result: Any) -> None:
        run = RunCreate.model_validate(
            {"uid": record.uid, "tenant": record.tenant, "spec_digest": record.spec_digest, "spec": spec}
        )
        self.catalog.complete_run(self.catalog.create_run(run).id, RunResult(**result))


@dataclass
class RuntimeAtUrl:
    """A runtime that is served at ``url``."""

    url: str

    def infer(self, *rows: dict[str, object], token: str = TOKEN) -> httpx.Response:
        return httpx.post(
            f"{self.url}/internal/v1/infer",
            json={"requestId": "r", "rows": list(rows)},
            headers={"Authorization": f"Bearer {token}"},
            timeout=LIMIT,
        )

    def first(self, adapter: str) -> object:
        """Return the version that answered, or the reason why none did."""
        result = InferReply.model_validate_json(
            self.infer({"adapter": adapter, "text": "a wheel"}).content
        ).results[0]
        return result.error.reason if result.error else result.version

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
