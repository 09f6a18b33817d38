"""Reasons that the reconciler gives in conditions, and what a user does about each.

The reason of a failed training run, load or declaration is copied into a condition unchanged, with its
message: see ``hmi_api.failure_reasons``.
"""

from enum import StrEnum


class Reason(StrEnum):
    """A reason, with ``advice`` for the reference page."""

    advice: str

    def __new__(cls, value: str, advice: str) -> "Reason":
        member = str.__new__(cls, value)
        member._value_ = value
        member.advice = advice
        return member

    # Accepted
    ACCEPTED = "Accepted", "Nothing: the resource can work as declared."
    NAMESPACE_EXCLUDED = (
        "NamespaceExcluded",
        "Apply it in a namespace of a tenant's: the cluster's and the installation's own are excluded.",
    )
    PARENT_NOT_FOUND = (
        "ParentNotFound",
        "Apply the parent Domain, or correct parentRef; this goes on by itself.",
    )
    PARENT_CYCLE = "ParentCycle", "The named Domains are one another's ancestors; remove parentRef from one."
    PARENT_BASE_DIFFERS = "ParentBaseDiffers", "Give parent and child the same baseModel."
    PARENT_SPLIT_DIFFERS = "ParentSplitDiffers", "Give parent and child the same split."
    DOMAIN_TERMINATING = (
        "DomainTerminating",
        "Wait until the Domain is gone and apply it anew, or name another one; this goes on by itself.",
    )
    NOT_SHARED = "NotShared", "Have the owner add this namespace to the Domain's sharing.namespaces."
    IMMUTABLE_FIELD = "ImmutableField", "Change the field back, or delete the resource and apply it anew."
    ADDRESS_UNREACHABLE = (
        "AddressUnreachable",
        "Give rows and adapters as s3://, https://, configmap://NAME/KEY or pvc://CLAIM/PATH.",
    )
    ADDRESS_MALFORMED = "AddressMalformed", "Write configmap://NAME/KEY or pvc://CLAIM/PATH."
    ADDRESS_NOT_ALLOWED = (
        "AddressNotAllowed",
        "Give a public address, or have the administrator list the host in data.allowedHosts.",
    )
    GATE_NEEDS_DATA = "GateNeedsData", "Remove spec.gate: an imported adapter has no rows to measure it on."
    GATE_METRIC_MISMATCH = "GateMetricMismatch", "Measure by accuracy or macro_f1; entity_f1 is for tokens."
    TASK_TYPE_UNSUPPORTED = "TaskTypeUnsupported", "Use SequenceClassification or TokenClassification."
    CANARY_UNSUPPORTED = "CanaryUnsupported", "Leave serving.canaryPercent out, or set it to 100."
    ADAPTER_TOO_LARGE = (
        "AdapterTooLarge",
        "Ask for a smaller method.size or fewer labels, or have the runtimes' limits raised.",
    )
    LABELS_REPEATED = "LabelsRepeated", "Name each label once in spec.task.labels."
    TENANT_LABEL_INVALID = (
        "TenantLabelInvalid",
        "Give the namespace's label hmi.dev/tenant a name of lower-case letters, digits and dashes.",
    )
    # Waiting and work
    WAITING = "Waiting", "Nothing: an earlier step is not finished yet."
    SUSPENDED = "Suspended", "Set spec.suspend to false to go on."
    PARENT_NOT_READY = "ParentNotReady", "Nothing: training starts when the parent is published."
    DOMAIN_NOT_FOUND = "DomainNotFound", "Apply the Domain, or correct domainRef; this goes on by itself."
    DOMAIN_NOT_READY = (
        "DomainNotReady",
        "Nothing while the Domain trains; else see the Domain's own conditions.",
    )
    DOMAIN_READY = "DomainReady", "Nothing: the Domain has a published version."
    NOT_LIMITED = "NotLimited", "Nothing: no quota is set."
    STARTING = "Starting", "Nothing: a training run is being created."
    QUEUED = "Queued", "Nothing: other training runs on this machine come first."
    RUNNING = "Running", "Nothing: status.progress says how far the run is."
    RETRYING = "Retrying", "Nothing: the run failed for a passing cause and is tried again."
    PROCESS_DIED = "ProcessDied", "Read the run's log; often too little memory."
    # Why a training Job does not run
    UNSCHEDULABLE = "Unschedulable", "Ask for less in spec.resources, or add nodes; it starts by itself then."
    IMAGE_PULL_BACK_OFF = (
        "ImagePullBackOff",
        "Have the installation's trainer image or its pull secret corrected.",
    )
    CREATE_CONTAINER_CONFIG_ERROR = (
        "CreateContainerConfigError",
        "Create the Secret that secretRef names; the Job goes on by itself.",
    )
    VOLUME_NOT_MOUNTED = (
        "VolumeNotMounted",
        "Create the ConfigMap or claim that an address names, or correct the address.",
    )
    OOM_KILLED = "OOMKilled", "Raise spec.resources.limits.memory, or lower training.batchSize or maxLength."
    EVICTED = "Evicted", "Nothing: training goes on from its checkpoint on another node."
    QUOTA_EXCEEDED = "QuotaExceeded", "Ask for less in spec.resources, or have the namespace's quota raised."
    DEADLINE_EXCEEDED = "DeadlineExceeded", "Ask for less work, or have the installation's deadline raised."
    JOB_REFUSED = "JobRefused", "The message has the API server's words; correct the spec or the policy."
    SUPERSEDED = "Superseded", "Nothing: a newer spec took the run's place."
    SUCCEEDED = "Succeeded", "Nothing: this step is done."
    # Reconciling and Stalled; where they are True, the reason is that of the step which they speak of
    UP_TO_DATE = "UpToDate", "Nothing: the declared spec is in effect."
    PROGRESSING = "Progressing", "Nothing: work goes on by itself; see the condition Reconciling."
    STALLED = "Stalled", "See the condition Stalled: something must be changed before work goes on."
    # Gate and serving
    NO_GATE = "NoGate", "Nothing: spec.gate is absent, so every version serves."
    GATE_PASSED = "GatePassed", "Nothing: the metric reached the minimum."
    GATE_NOT_REACHED = (
        "GateNotReached",
        "Improve the data or training, or lower gate.minimum; what served goes on.",
    )
    PUBLISHED = "Published", "Nothing: the version is in the catalog."
    PREVIOUS_VERSION = (
        "PreviousVersion",
        "The previous version serves on; see the other conditions.",
    )
    PLACED = "Placed", "Nothing: a runtime was chosen."
    NO_RUNTIME = "NoRuntime", "Start a runtime, or give the present ones more room."
    LOADED = "Loaded", "Nothing: a runtime holds the adapter."
    LOADING = "Loading", "Nothing: a runtime is fetching the adapter."
    SERVING = "Serving", "Nothing: requests are answered."
    IN_USE = "InUse", "Delete the resources that stand on the Domain; it goes by itself then."
    CONTROL_PLANE_UNAVAILABLE = (
        "ControlPlaneUnavailable",
        "Nothing: what is deleted goes once the control plane answers again.",
    )
    UNREADABLE = "Unreadable", "Wait for the upgrade to end; then correct what the message names."
    ORPHAN_ERASED = (
        "OrphanErased",
        "Nothing: an Event; what was deleted while the operator was away is erased from the catalog.",
    )
    TERMINATING = "Terminating", "Nothing: what belongs to the resource is being erased."
