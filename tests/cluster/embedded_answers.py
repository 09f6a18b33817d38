"""The answers of a runtime in this process with the same artifacts, one row per batch."""

import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from administration import Administration
from installation import NAMESPACE, RELEASE
from kubectl import Kubectl

from hmi_api.artifacts import ArtifactRef
from hmi_api.internal.catalog import AdapterView, DomainView
from hmi_api.internal.inference import InferRow, RowResult
from hmi_api.internal.runtimes import AdapterServing, DomainServing
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.metrics import RuntimeMetrics
from hmi_runtime.server.settings import RuntimeSettings

_ANSWER_SECONDS = 60
_DRAIN_SECONDS = 5.0


class EmbeddedRuntime:
    """Serves adapters that the cluster has trained, from copies of its artifacts."""

    def __init__(self, kubectl: Kubectl, administration: Administration, folder: Path) -> None:
        self._kubectl = kubectl
        self._administration = administration
        self._root = folder / "artifacts"
        self._root.mkdir()
        self._settings = RuntimeSettings(
            control_plane_url="http://nowhere.invalid",
            internal_token="it calls no control plane",
            artifacts=str(self._root),
            cache_dir=folder / "cache",
            device_budget=256 << 20,
            device_slots=16,
            threads=1,
            precision="float32",
            max_wait_ms=0,
        )

    @contextmanager
    def serving(self, adapters: Sequence[tuple[str, str]]) -> Iterator[AdapterLoader]:
        """Serve adapters, named by namespace and name."""
        metrics = RuntimeMetrics()
        with ThreadPoolExecutor(2) as loaders:
            loader = AdapterLoader(
                self._settings,
                ArtifactStore(str(self._root)),
                loaders,
                cache_events=metrics,
                pipeline_events=metrics,
            )
            try:
                for namespace, name in adapters:
                    loader.activate(loader.load(*self._view(namespace, name)))
                yield loader
            finally:
                loader.pipeline.drain(_DRAIN_SECONDS)

    def _view(self, namespace: str, name: str) -> tuple[AdapterServing, DomainServing]:
        said = self._administration.as_operator(f"/internal/v1/adapters/{namespace}/{name}")
        adapter = AdapterView.model_validate_json(said.text)
        assert adapter.current is not None
        said = self._administration.as_operator(f"/internal/v1/domains/{adapter.record.domain}")
        domain = DomainView.model_validate_json(said.text)
        assert domain.current is not None
        self._copy([adapter.current.artifact, domain.current.layers, *domain.current.tables])
        serving = AdapterServing(
            key=f"{adapter.record.tenant}/{name}",
            version=adapter.current.version,
            task_type=adapter.record.task_type,
            labels=adapter.current.labels,
            artifact=adapter.current.artifact,
            domain=adapter.record.domain,
            domain_version=domain.current.version,
        )
        return serving, DomainServing(key=adapter.record.domain, version=domain.current)

    def _copy(self, artifacts: Sequence[ArtifactRef]) -> None:
        """Copy artifacts out of the installation's store, as a stream that a pod with the volume writes."""
        wanted = [one.uri for one in artifacts if not (self._root / one.uri).exists()]
        if not wanted:
            return
        command = ["kubectl", "exec", "-n", NAMESPACE, f"deploy/{RELEASE}-control-plane", "--"]
        command += ["tar", "-C", "/artifacts", "-cf", "-", *wanted]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as copying:
            subprocess.run(
                ["tar", "-C", self._root, "-xf", "-", "--no-same-owner"], stdin=copying.stdout, check=True
            )
        assert copying.returncode == 0


def answer(loader: AdapterLoader, adapter: str, text: str) -> RowResult:
    """Return the answer to one text by the adapter ``tenant/name``, alone in its batch."""
    rows = [InferRow(adapter=adapter, text=text)]
    result = loader.pipeline.submit(rows).result(_ANSWER_SECONDS)[0]
    assert result.error is None, result.error
    return result
