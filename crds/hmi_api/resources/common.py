"""Types of both resource kinds, quantities, and the Namespace with its tenant label."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from hmi_api.errors import InvalidInput
from hmi_api.names import TENANT_LABEL, DomainKey, KindName, Tenant, domain_key
from hmi_api.resources.cel import rule, rules
from hmi_api.resources.conditions import Condition

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
DNS_LABEL_WORDS = (
    "a name has at most 63 lower-case letters, digits and dashes, with a letter or digit first and last"
)
NAMED_IN_SENTENCE = 8
"""How many files or labels a message names."""
DnsLabel = Annotated[str, Field(pattern=DNS_LABEL, max_length=63)]
QUANTITY = r"^[+]?([0-9]+([.][0-9]*)?|[.][0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][-+]?[0-9]{1,2})?$"
"""A quantity of at least 0, for Python and the API server alike."""
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def format_time(moment: datetime) -> str:
    """Return a time as Kubernetes writes it: RFC 3339, UTC, in whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_quantity(amount: int | str) -> Decimal | None:
    """Return the value of a quantity; None if it is invalid or negative."""
    found = re.fullmatch(QUANTITY, str(amount))
    if found is None:
        return None
    number, suffix = Decimal(found[1]), found[3] or ""
    if suffix in _BINARY:
        return number * Decimal(2 ** _BINARY[suffix])
    return number.scaleb(_DECIMAL[suffix] if suffix in _DECIMAL else int(suffix[1:]))


LONGEST_QUANTITY = 64
MOST_RESOURCES = 16
Quantity = Annotated[
    int | str,
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": LONGEST_QUANTITY,
        }
    ),
]
"""An amount of a resource in Kubernetes' notation: 2, "500m" or "4Gi"."""


class ApiModel(BaseModel):
    """Base of everything a user writes: camelCase in YAML, unknown fields refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


class _KubernetesModel(BaseModel):
    """Base of what Kubernetes defines: fields that HMI does not read are kept as they came."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")


class ObjectMeta(_KubernetesModel):
    """Kubernetes' metadata of an object."""

    name: DnsLabel
    namespace: DnsLabel = "default"
    uid: str = ""
    generation: int = 1
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: list[str] = Field(default_factory=list)


class ObjectRef(ApiModel):
    """Names another resource, in this namespace unless one is given."""

    name: DnsLabel = Field(description="Name of the resource.")
    namespace: DnsLabel | None = Field(default=None, description="Its namespace; this one when absent.")

    def key(self, own_namespace: str) -> DomainKey:
        """Return the key of the Domain that a resource in ``own_namespace`` names so."""
        return domain_key(self.namespace or own_namespace, self.name)


class CustomResource(ApiModel):
    """What both kinds begin with."""

    api_version: Literal["hmi.dev/v1alpha1"] = Field(default="hmi.dev/v1alpha1", description="API version.")
    kind: KindName = Field(description="Kind.")
    metadata: ObjectMeta = Field(description="Name, namespace and labels.")


class SecretRef(ApiModel):
    """Names a Secret in the resource's own namespace."""

    name: DnsLabel = Field(description="Name of the Secret.")


FieldName = Annotated[str, Field(min_length=1, max_length=253)]
"""Name of a field of the rows."""


class DataSource(ApiModel):
    """Rows of text: a file, folder or zip archive of JSON Lines, plain text or CSV (see data.md)."""

    uri: str = Field(
        min_length=1,
        max_length=2048,
        description="Where the rows are. On a cluster: s3://, https://, configmap://NAME/KEY or "
        "pvc://CLAIM/PATH; on one machine: a path, file:// or any fsspec address.",
    )
    format: Literal["JSONLines", "Text", "CSV"] = Field(
        default="JSONLines",
        description="JSONLines (one object a line), Text (one row a line) or CSV (with a header).",
    )
    text_field: FieldName = Field(default="text", description="Field that holds the text; ignored for Text.")
    label_field: FieldName = Field(
        default="label", description="Field that holds the label, for sequence tasks."
    )
    tokens_field: FieldName = Field(
        default="tokens", description="Field with the list of words, for token tasks."
    )
    tags_field: FieldName = Field(default="tags", description="Field with the list of tags, for token tasks.")
    secret_ref: SecretRef | None = Field(
        default=None, description="Secret with the credentials for the address."
    )


_RESOURCE_NAME = (
    r"^(cpu|memory|ephemeral-storage|hugepages-[0-9]+[KMG]i"
    r"|[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)$"
)
_BOTH = "isQuantity(string(self.requests[name])) && isQuantity(string(self.limits[name]))"
_WITHIN = "quantity(string(self.requests[name])).compareTo(quantity(string(self.limits[name]))) <= 0"


def _requests_within_limits(resources: dict[str, dict[str, int | str]]) -> bool:
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    both = [
        (parse_quantity(requests[name]), parse_quantity(limits[name]))
        for name in requests.keys() & limits.keys()
    ]
    return all(request is None or limit is None or request <= limit for request, limit in both)


_AMOUNT_RULES = rules(
    rule(
        f"self.all(name, string(self[name]).matches('{QUANTITY}'))",
        'an amount is a whole number, or a quantity in quotes such as "500m", "1.5" or "4Gi", from 0',
        holds=lambda amounts: all(parse_quantity(value) is not None for value in amounts.values()),
    ),
    rule(
        f"self.all(name, name.matches('{_RESOURCE_NAME}'))",
        "name cpu, memory, ephemeral-storage, hugepages-SIZE or a device such as nvidia.com/gpu",
        holds=lambda amounts: all(re.fullmatch(_RESOURCE_NAME, name) for name in amounts),
    ),
)
Amounts = Annotated[dict[str, Quantity], Field(max_length=MOST_RESOURCES, json_schema_extra=_AMOUNT_RULES)]


class Resources(ApiModel):
    """What a training Job may use, in Kubernetes' notation."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.requests) || !has(self.limits) || self.requests.all(name, "
                f"!(name in self.limits) || !({_BOTH}) || {_WITHIN})",
                "no request may be above the limit of the same name; lower it or raise the limit",
                ".requests",
                holds=_requests_within_limits,
            )
        )
    )

    requests: Amounts = Field(
        default_factory=dict, description='Requested, such as {"cpu": 2, "memory": "4Gi"}.'
    )
    limits: Amounts = Field(
        default_factory=dict, description='Not exceeded, such as {"memory": "8Gi"}; training uses CPUs.'
    )


class ArtifactStatus(ApiModel):
    """Where a published version's bytes are."""

    uri: str = Field(description="Address of the artifact in the store.")
    digest: str = Field(description="SHA-256 of its manifest, which names the digest of every file.")
    bytes: int = Field(description="Size in bytes, all files together.")


class DataRead(ApiModel):
    """What a training run read of one data source."""

    use: str = Field(description="What it was read for: corpus, train, evaluation or unlabelled.")
    uri: str = Field(description="The address, as declared.")
    rows: int = Field(description="Rows that were read.")
    file_count: int = Field(description="Files that were read.")
    files: list[str] = Field(default_factory=list, description="Their names; the first 20.")
    skipped_count: int = Field(default=0, description="Files that were not read.")
    skipped: list[str] = Field(default_factory=list, description="Their names, and why; the first 20.")
    label_count: int = Field(default=0, description="Different labels of the rows, if they have any.")
    labels: dict[str, int] = Field(
        default_factory=dict, description="Rows, or words, of each label; of the 50 most frequent labels."
    )
    held_out: int | None = Field(
        default=None, description="Rows not trained on, by which epoch and rank are chosen."
    )

    def sentence(self) -> str:
        """Return it in words, such as ``train: 12 rows of 1 file (a.jsonl), labels bug 7, praise 5.``."""
        parts = [
            f"{self.use}: {self.rows} rows of {self.file_count} files{_listed(self.files, self.file_count)}"
        ]
        if self.held_out is not None:
            parts.append(f"{self.held_out} of them held out")
        if self.labels:
            counts = [f"{name} {count}" for name, count in self.labels.items()]
            parts.append(f"{self.label_count} labels{_listed(counts, self.label_count)}")
        if self.skipped_count:
            parts.append(f"{self.skipped_count} files skipped{_listed(self.skipped, self.skipped_count)}")
        return "; ".join(parts) + "."


def _listed(names: list[str], count: int) -> str:
    """Return the first few names in brackets."""
    shown = ", ".join(names[:NAMED_IN_SENTENCE])
    more = f" and {count - NAMED_IN_SENTENCE} more" if count > NAMED_IN_SENTENCE else ""
    return f" ({shown}{more})" if shown else ""


class CommonStatus(ApiModel):
    """What both kinds report; each field is written by the reconciler alone."""

    observed_generation: int | None = Field(
        default=None, description="Generation that this status describes."
    )
    phase: str = Field(default="Pending", description="One word for people; programs read the conditions.")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Steps on the way to Ready.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    version: int | None = Field(default=None, description="Version that is published, from 1.")
    artifact: ArtifactStatus | None = Field(default=None, description="Artifact of that version.")
    metrics: dict[str, float] = Field(default_factory=dict, description="Measured on held-out rows.")
    data: list[DataRead] = Field(
        default_factory=list, description="What the published version, or the run in progress, has read."
    )
    run_ref: str | None = Field(
        default=None,
        validation_alias=AliasChoices("runRef", "jobRef"),  # jobRef: its name in the first release
        serialization_alias="runRef",
        description="Id of the training run in progress, if any.",
    )
    progress: str | None = Field(default=None, description="How far that run is, such as training 120/400.")


def dump(model: BaseModel) -> dict[str, Any]:
    """Return a model as it is written in YAML and JSON: camelCase, absent fields left out."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


class NamespaceMeta(_KubernetesModel):
    """A namespace's own metadata."""

    name: DnsLabel
    labels: dict[str, str] = Field(default_factory=dict)


class Namespace(_KubernetesModel):
    """A namespace; its tenant is its label ``hmi.dev/tenant``, else its name."""

    api_version: Literal["v1"] = "v1"
    kind: Literal["Namespace"] = "Namespace"
    metadata: NamespaceMeta


def check_tenant(tenant: Tenant, namespace: str) -> None:
    """Raise ``InvalidInput`` TenantLabelInvalid where a namespace's label cannot be a tenant's name.

    Kubernetes itself takes more as a label: capitals, dots and underscores.
    """
    if not re.fullmatch(DNS_LABEL, tenant):
        raise InvalidInput(
            "TenantLabelInvalid",
            f"Namespace {namespace} has the label {TENANT_LABEL}: {tenant!r}, which cannot be "
            "a tenant's name. Use at most 63 lower-case letters, digits and dashes, with a letter or digit "
            "first and last.",
        )
