"""The TaskAdapter resource: one task of one tenant, trained on a Domain."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from hmi_api.errors import InvalidInput
from hmi_api.names import DomainKey
from hmi_api.resources.cel import immutable, rule, rules
from hmi_api.resources.common import (
    ApiModel,
    CommonStatus,
    CustomResource,
    DataSource,
    ObjectRef,
    Resources,
    SecretRef,
)


class TaskType(StrEnum):
    """The kind of a task's output."""

    SEQUENCE_CLASSIFICATION = "SequenceClassification"
    TOKEN_CLASSIFICATION = "TokenClassification"
    TEXT_GENERATION = "TextGeneration"


class MethodType(StrEnum):
    """How the upper layers are customised."""

    LORA = "LoRA"
    BOTTLENECK = "Bottleneck"


class Fit(StrEnum):
    """How an adapter is trained: by full fine-tuning and compression, or directly."""

    COMPRESSED = "Compressed"
    DIRECT = "Direct"


class AdapterPlacement(StrEnum):
    """Where a bottleneck is inserted."""

    PARALLEL = "Parallel"
    SEQUENTIAL = "Sequential"


class Metric(StrEnum):
    """What a gate measures on held-out rows; all are 0 to 1 and higher is better."""

    ACCURACY = "accuracy"
    MACRO_F1 = "macro_f1"
    ENTITY_F1 = "entity_f1"


LabelName = Annotated[str, Field(min_length=1, max_length=1024)]


class Task(ApiModel):
    """The task itself."""

    type: TaskType = Field(
        description="SequenceClassification, TokenClassification or TextGeneration. Immutable."
    )
    labels: list[LabelName] = Field(
        default_factory=list,
        max_length=10_000,
        json_schema_extra={"minItems": 1},
        description="Label names in the order of the scores; from the training rows, sorted, when absent. "
        "At most as many as the installation's runtimes serve: 256 unless that was raised.",
    )

    @model_serializer(mode="wrap")
    def _without_empty_labels(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Absent in what is applied, since a list there must have entries; so it is absent in what is written.
        written: dict[str, Any] = write(self)
        return (
            written if self.labels else {name: value for name, value in written.items() if name != "labels"}
        )


class TaskData(ApiModel):
    """Labelled rows."""

    train: DataSource = Field(description="Rows to learn from.")
    evaluation: DataSource | None = Field(
        default=None,
        description="Held-out rows for the gate; a tenth of the training rows, by label, when absent.",
    )
    unlabelled: DataSource | None = Field(
        default=None, description="Texts like those of the task, for a training.teacher to label."
    )


class ImportSource(ApiModel):
    """An adapter trained elsewhere: a PEFT LoRA folder."""

    uri: str = Field(
        min_length=1,
        max_length=2048,
        description="Folder with adapter_config.json and adapter_model.safetensors.",
    )
    secret_ref: SecretRef | None = Field(default=None, description="Secret with the credentials.")
    base_model_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="Another name of the Domain's base model, which base_model_name_or_path in "
        "adapter_config.json may give. The folder of a base model that has neither this name nor that of the "
        "Domain's baseModel.uri is refused.",
    )


class Method(ApiModel):
    """How the upper layers are adapted to the task."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!(has(self.fit) && self.fit == 'Compressed' && self.type == 'Bottleneck')",
                "fit: Compressed is for LoRA only; remove fit or set it to Direct",
                ".fit",
                holds=lambda method: (method["type"], method.get("fit")) != ("Bottleneck", "Compressed"),
            )
        )
    )

    type: MethodType = Field(default=MethodType.LORA, description="LoRA or Bottleneck.")
    fit: Fit | None = Field(
        default=None,
        description="Compressed (tune in full, then cut to a low rank; LoRA only and its default) or Direct.",
    )
    placement: AdapterPlacement = Field(
        default=AdapterPlacement.PARALLEL, description="Bottleneck only: Parallel or Sequential."
    )
    size: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Rank of a LoRA or width of a bottleneck. Absent: Compressed takes the smallest rank "
        "of 8, 16, 32 that keeps validation metric and predictions; Direct LoRA 16; Bottleneck 32. At most "
        "what the installation's runtimes serve: rank 32 and width 128 (hmi up: 64) unless that was raised.",
    )
    alpha: float | None = Field(
        default=None, gt=0, le=4096, description="LoRA's scale is alpha / size; alpha is size when absent."
    )

    @property
    def effective_fit(self) -> Fit:
        """The fit that applies: LoRA is compressed unless said otherwise, a bottleneck is always direct."""
        if self.fit is not None:
            return self.fit
        return Fit.COMPRESSED if self.type is MethodType.LORA else Fit.DIRECT


class Teacher(ApiModel):
    """A whole model that is fine-tuned first; the adapter learns its outputs, for unlabelled texts too."""

    epochs: int = Field(default=6, ge=1, le=1000, description="Its passes over the training rows.")
    learning_rate: float = Field(default=3e-4, gt=0, le=1, description="Its peak rate.")
    unlabelled_rows: int = Field(
        default=4000, ge=0, le=1_000_000, description="Texts of data.unlabelled that are used at most."
    )


class AdapterTraining(ApiModel):
    """How the task is learnt."""

    epochs: int = Field(default=10, ge=1, le=1000, description="Passes over the training rows.")
    batch_size: int = Field(default=32, ge=1, le=4096, description="Rows a step.")
    learning_rate: float = Field(default=2e-4, gt=0, le=1, description="Peak rate.")
    max_length: int = Field(default=128, ge=8, le=8192, description="Tokens a row is cut to.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Same seed and data, same result.")
    teacher: Teacher | None = Field(
        default=None,
        description="Fine-tune a whole model first and learn from it. Takes several times as long and 16 "
        "bytes of memory a weight, and is worth it where adapters alone lose accuracy. None when absent.",
    )


class Gate(ApiModel):
    """What a version must reach on held-out rows before it serves."""

    metric: Metric = Field(description="accuracy, macro_f1 or entity_f1.")
    minimum: float = Field(ge=0, le=1, description="Least value that passes, 0 to 1.")


class Serving(ApiModel):
    """How the adapter is served."""

    replicas: int = Field(default=1, ge=1, le=1000, description="Runtimes that load it.")
    pinned: bool = Field(default=False, description="True: never evicted from device memory.")
    canary_percent: int = Field(
        default=100,
        ge=0,
        le=100,
        description="Share of traffic a new version gets while the old one serves; only 100 so far.",
    )


class TaskAdapterSpec(ApiModel):
    """What a tenant declares of a task. ``domainRef`` and ``task.type`` cannot be changed later."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            immutable("domainRef"),
            immutable("task.type"),
            rule(
                "has(self.data) != has(self.source)",
                "give exactly one of data (to train here) and source (to import a PEFT folder)",
                holds=lambda spec: ("data" in spec) != ("source" in spec),
            ),
            rule(
                "!has(self.data) || !has(self.data.unlabelled) || has(self.training.teacher)",
                "data.unlabelled is for a teacher to label: add training.teacher (an empty object is enough)",
                ".data.unlabelled",
                holds=lambda spec: "unlabelled" not in spec.get("data", {}) or "teacher" in spec["training"],
            ),
        )
    )

    domain_ref: ObjectRef = Field(description="Its Domain. Immutable.")
    task: Task = Field(description="The task.")
    data: TaskData | None = Field(default=None, description="Rows to train on; exclusive with source.")
    source: ImportSource | None = Field(
        default=None, description="Adapter trained elsewhere; exclusive with data."
    )
    method: Method = Field(default_factory=Method, description="How the upper layers are adapted.")
    training: AdapterTraining = Field(default_factory=AdapterTraining, description="How it is learnt.")
    gate: Gate | None = Field(default=None, description="Least metric for serving; none when absent.")
    serving: Serving = Field(default_factory=Serving, description="How it is served.")
    resources: Resources = Field(default_factory=Resources, description="For the training Job.")
    suspend: bool = Field(
        default=False, description="True: start no training; published versions keep serving."
    )


class TaskAdapterStatus(CommonStatus):
    """What the reconciler reports of a TaskAdapter."""

    domain: str | None = Field(
        default=None, description="Domain and version it was trained on, such as shop/3."
    )
    replicas: int | None = Field(
        default=None, description="Runtimes that have loaded the published version; for kubectl scale."
    )


class TaskAdapter(CustomResource):
    """A TaskAdapter: one task of one tenant."""

    kind: Literal["TaskAdapter"] = Field(default="TaskAdapter", description="Kind.")
    spec: TaskAdapterSpec = Field(description="Desired state.")
    status: TaskAdapterStatus = Field(default_factory=TaskAdapterStatus, description="Observed state.")

    @property
    def domain_key(self) -> DomainKey:
        """Key of the Domain that ``domainRef`` names."""
        return self.spec.domain_ref.key(self.metadata.namespace)


def check_gate_fits(gate: Gate | None, task: TaskType, *, has_data: bool) -> None:
    """Raise ``InvalidInput`` for a gate that cannot be measured: GateNeedsData, GateMetricMismatch."""
    if gate is None:
        return
    if not has_data:
        raise InvalidInput(
            "GateNeedsData",
            "An imported adapter comes without held-out rows, so its gate cannot be measured; remove gate.",
        )
    if gate.metric is Metric.ENTITY_F1 and task is not TaskType.TOKEN_CLASSIFICATION:
        raise InvalidInput(
            "GateMetricMismatch",
            f"entity_f1 is for TokenClassification; measure {task.value} by accuracy or macro_f1.",
        )
