"""A small random base model, and ``ReferenceModels``, which publishes Domains and adapters on it."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from runtime_process import PublishingControlPlane, RuntimeAtUrl
from serving import free_port, serving
from support_encoders import SPECIAL_TOKENS, save_base_model
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.runtimes import AdapterServing, DomainServing
from hmi_api.resources.domain import BaseModelRef, OnMiss
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.heads import run_head
from hmi_runtime.adapters.reference import run_row
from hmi_runtime.adapters.weights import AdapterWeights, Bottleneck, Head, LayerAdapter, LoraMatrix
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.models.architecture import MATRICES
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.encoder import UpperLayers
from hmi_runtime.models.source import BaseModel, load_base
from hmi_runtime.models.windows import pack, trigrams
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.metrics import RuntimeMetrics
from hmi_runtime.server.process import RuntimeProcess
from hmi_runtime.server.settings import RuntimeSettings
from hmi_runtime.tables.table import PlotTable

SPLIT = 2
TOKEN = "internal-token-of-the-tests"
VOCABULARY = "the chain slips on a hill room key lost my ##s ##ing wheel ."
WORDS = VOCABULARY.split()
SENTENCES = [
    "the chain slips on a hill",
    "my room key lost",
    "a wheel",
    "the rooms . my keys slipsing on the chain",
    "lost",
]


@dataclass
class ReferenceModels:
    """Publishes Domain versions and adapters, and computes the right answers by the references."""

    folder: Path
    base: BaseModel
    store: ArtifactStore
    layers: dict[tuple[str, int], DomainLayers] = field(default_factory=dict)
    adapters: dict[str, AdapterWeights] = field(default_factory=dict)
    domains: dict[str, DomainServing] = field(default_factory=dict)

    def domain(
        self, key: str, version: int = 1, *, seed: int = 0, bridge_heads: int = 2, table: bool = True
    ) -> DomainServing:
        """Publish a domain version: random layers, and a table of the first sentence's windows."""
        encoder = self.base.encoder()
        made = DomainLayers.from_encoder(encoder, SPLIT, bridge_heads=bridge_heads, bridge_head_size=8)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        made.requires_grad_(False).eval()
        folder = self._new_folder("layers")
        made.save(folder)
        ref = self.store.publish(ArtifactKind.LAYERS, folder, base_digest=self.base.digest)
        tables = [self._table(made, ref)] if table else []
        self.layers[key, version] = made
        self.domains[key] = DomainServing(
            key=key,
            version=DomainVersionView(
                version=version,
                spec_digest="sha256:spec",
                base=BaseModelRef(uri=self.base.uri),
                base_digest=self.base.digest,
                split=SPLIT,
                layers=ref,
                tables=tables,
                on_miss=OnMiss.COMPUTE,
                entries=8,
                coverage=0.5,
            ),
        )
        return self.domains[key]

    def refreshed(self, domain: DomainServing, sentences: Sequence[str]) -> DomainServing:
        """Publish a Domain's next version: the same layers, and a table of the windows of ``sentences``."""
        view, key = domain.version, domain.key
        made = self.layers[key, view.version]
        tables = [self._table(made, view.layers, sentences)]
        self.layers[key, view.version + 1] = made
        next_view = view.model_copy(update={"version": view.version + 1, "tables": tables})
        self.domains[key] = DomainServing(key=key, version=next_view)
        return self.domains[key]

    def adapter(
        self,
        key: str,
        domain: DomainServing,
        *,
        version: int = 1,
        seed: int = 0,
        labels: int = 3,
        task: TaskType = TaskType.SEQUENCE_CLASSIFICATION,
        bottleneck: bool = False,
        pinned: bool = False,
    ) -> AdapterServing:
        """Publish a random adapter on a domain version."""
        weights = self.weights(
            domain.version.layers.digest, seed=seed, labels=labels, task=task, bottleneck=bottleneck
        )
        folder = self._new_folder("adapter")
        weights.save(folder)
        ref = self.store.publish(
            ArtifactKind.ADAPTER, folder, base_digest=self.base.digest, layers_digest=weights.layers_digest
        )
        self.adapters[f"{key}@{version}"] = weights.as_stored().as_float32()
        return AdapterServing(
            key=key,
            version=version,
            task_type=task,
            labels=list(weights.labels),
            artifact=ref,
            domain=domain.key,
            domain_version=domain.version.version,
            pinned=pinned,
        )

    def weights(
        self, layers_digest: str, *, seed: int, labels: int, task: TaskType, bottleneck: bool
    ) -> AdapterWeights:
        generator = torch.Generator().manual_seed(seed)
        config = self.base.config

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator) * 0.3

        def lora(matrix: str) -> LoraMatrix:
            out, inner = config.matrix_shape(matrix)
            return LoraMatrix(random(4, inner), random(out, 4))

        def narrow() -> Bottleneck:
            return Bottleneck(
                random(6, config.width), random(6), random(config.width, 6), random(config.width)
            )

        def layer() -> LayerAdapter:
            return LayerAdapter(
                lora={} if bottleneck else {matrix: lora(matrix) for matrix in MATRICES},
                norms={"ffn_norm": (1 + random(config.width), random(config.width))},
                bottlenecks={"attention": narrow(), "ffn": narrow()} if bottleneck else {},
            )

        token = task is TaskType.TOKEN_CLASSIFICATION
        width = config.width if token else 2 * config.width
        return AdapterWeights(
            task=task,
            labels=tuple(f"label-{number}" for number in range(labels)),
            layers={index: layer() for index in range(SPLIT, config.layers)},
            head=Head("token" if token else "first_and_mean", random(labels, width), random(labels)),
            base_digest=self.base.digest,
            layers_digest=layers_digest,
        )

    def probabilities(self, adapter: AdapterServing, text: str | list[str]) -> torch.Tensor:
        """Return the probabilities of one row by the references: (labels,) or (T, labels)."""
        tokenizer = self.base.tokenizer
        encoding = (
            tokenizer.encode([text], 64) if isinstance(text, str) else tokenizer.encode_words([text], 64)
        )[0]
        ids = torch.tensor([encoding.ids])
        mask = torch.ones_like(ids, dtype=torch.bool)
        weights = self.adapters[f"{adapter.key}@{adapter.version}"]
        with torch.no_grad():
            upper = UpperLayers(self.base.encoder(), SPLIT)
            hidden = self.layers[adapter.domain, adapter.domain_version].represent(ids, mask)[0]
            last = run_row(upper, weights, hidden, mask[0])
            return run_head(weights.head, last, mask[0]).softmax(-1)

    def _table(
        self, layers: DomainLayers, ref: ArtifactRef, sentences: Sequence[str] = SENTENCES[:1]
    ) -> ArtifactRef:
        rows = [torch.tensor([one.ids]) for one in self.base.tokenizer.encode(list(sentences), 64)]
        found = [trigrams(ids, torch.ones_like(ids, dtype=torch.bool))[0] for ids in rows]
        windows = torch.cat(found).unique(dim=0)
        vocabulary = self.base.config.vocab_size
        with torch.no_grad():
            outputs = layers.window_outputs(windows)
        table = PlotTable.from_outputs(
            pack(windows, vocabulary), outputs, vocab_size=vocabulary, layers_digest=ref.digest
        )
        folder = self._new_folder("table")
        table.save(folder)
        return self.store.publish(
            ArtifactKind.TABLE, folder, base_digest=self.base.digest, layers_digest=ref.digest
        )

    def _new_folder(self, kind: str) -> Path:
        number = len(list((self.folder / "made").glob("*")))
        folder = self.folder / "made" / f"{kind}-{number}"
        folder.mkdir(parents=True)
        return folder


@pytest.fixture(scope="session")
def tiny_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """A random model of four layers with a word-piece tokenizer of a few words; BERT by default."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *WORDS])}
    tokenizer = BackendTokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    family = getattr(request, "param", "bert")
    save_base_model(folder, family, tokenizer, hidden_size=24, intermediate_size=40)
    return load_base(str(folder))


@pytest.fixture
def models(tmp_path: Path, tiny_base: BaseModel) -> ReferenceModels:
    return ReferenceModels(tmp_path, tiny_base, ArtifactStore(str(tmp_path / "store")))


@pytest.fixture
def settings(tmp_path: Path) -> RuntimeSettings:
    return RuntimeSettings(
        control_plane_url="http://127.0.0.1:9",
        internal_token=TOKEN,
        artifacts=str(tmp_path / "store"),
        cache_dir=tmp_path / "cache",
        threads=3,
        precision="float32",
        device_slots=8,
        max_rank=8,
        max_bottleneck=8,
        max_labels=8,
        host_budget=1 << 22,
        heartbeat_seconds=0.2,
        poll_seconds=1.0,
        failed_load_retry_seconds=0.05,
        drain_seconds=5.0,
    )


@pytest.fixture
def metrics() -> RuntimeMetrics:
    return RuntimeMetrics()


@pytest.fixture
def loader(
    models: ReferenceModels, settings: RuntimeSettings, metrics: RuntimeMetrics
) -> Iterator[AdapterLoader]:
    with ThreadPoolExecutor(2) as loaders:
        made = AdapterLoader(
            settings,
            models.store,
            loaders,
            cache_events=metrics,
            pipeline_events=metrics,
            table_events=metrics,
        )
        yield made
        made.pipeline.drain(5.0)


@pytest.fixture
def control_plane() -> PublishingControlPlane:
    return PublishingControlPlane()


@pytest.fixture
def runtime(control_plane: PublishingControlPlane, settings: RuntimeSettings) -> Iterator[RuntimeAtUrl]:
    with serving(control_plane.app, lifespan="off") as url:
        port = free_port()
        own = settings.model_copy(
            update={"control_plane_url": url, "runtime_url": f"http://127.0.0.1:{port}"}
        )
        with serving(RuntimeProcess(own).app, port) as runtime_url:
            yield RuntimeAtUrl(runtime_url)
