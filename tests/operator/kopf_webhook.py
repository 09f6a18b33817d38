"""kopf's function that answers admission reviews, with this operator's handlers."""

import functools
from typing import Any

import kopf
from kopf._cogs.structs.references import Insights, Resource
from kopf._core.engines.admission import serve_admission_request
from kopf._core.reactor.inventory import ResourceMemories

from hmi_api.names import GROUP, PLURALS, VERSION
from hmi_operator.kubernetes.cache import ResourceCache
from hmi_operator.kubernetes.handlers import build_registry, build_settings
from hmi_operator.kubernetes.webhook import AdmissionReviewer


def kopf_webhook(reviewer: AdmissionReviewer) -> kopf.WebhookFn:
    """Return what kopf gives to a webhook server in a cluster with HMI's CRDs."""
    insights = Insights()
    insights.webhook_resources.update(
        Resource(group=GROUP, version=VERSION, plural=plural, kind=kind) for kind, plural in PLURALS.items()
    )
    call: Any = functools.partial(
        serve_admission_request,
        settings=build_settings(),
        memories=ResourceMemories(),
        memobase=kopf.Memo(),
        registry=build_registry(ResourceCache(), reviewer),
        insights=insights,
        indices={},
    )
    found: kopf.WebhookFn = call
    return found
