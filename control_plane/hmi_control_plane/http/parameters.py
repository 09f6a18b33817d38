"""Types of path and query parameters, with their validation."""

from typing import Annotated

from fastapi import Path
from pydantic import StringConstraints

from hmi_api.resources.common import DNS_LABEL

Name = Annotated[str, Path(pattern=DNS_LABEL, max_length=63, description="A DNS label.")]
TenantNameOrId = Annotated[
    str, StringConstraints(pattern=rf"{DNS_LABEL}|^tenant_[0-9a-f]{{16}}$", max_length=63)
]
"""A tenant's name, or its id: several tenants may have had the same name one after another."""
RuntimeId = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._]{0,126}[A-Za-z0-9])?$", description="Id of a runtime.")
]
RunId = Annotated[str, Path(pattern=r"^[0-9a-f]{1,32}$", description="Id of a training run.")]
