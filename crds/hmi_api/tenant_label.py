"""The label of a namespace that names its tenant: which values it may have."""

import re

from hmi_api.common import DNS_LABEL
from hmi_api.errors import InvalidInput
from hmi_api.names import TENANT_LABEL, Tenant


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
