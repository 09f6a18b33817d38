"""The catalog's tables as SQLAlchemy classes, one module for each topic, and their column types.

A class is called ``...Row`` where another class has the plain name, as the resource ``Domain`` has. There are
no queries and no decisions here.
"""

from hmi_control_plane.catalog.tables.billing import Invoice, InvoiceLine, InvoiceState, Price
from hmi_control_plane.catalog.tables.columns import MAX_AMOUNT, Base
from hmi_control_plane.catalog.tables.resources import (
    IS_CURRENT,
    AdapterRow,
    AdapterVersion,
    Artifact,
    Cluster,
    DomainRow,
    DomainVersion,
    DomainVersionTable,
)
from hmi_control_plane.catalog.tables.runs import RunArtifact, RunPodRow, TrainingRun
from hmi_control_plane.catalog.tables.runtimes import (
    DomainPlacement,
    LoadReport,
    LoadState,
    Placement,
    RecordedChoice,
    Runtime,
)
from hmi_control_plane.catalog.tables.tenants import ApiKey, DeletedTenant, Tenant, new_tenant_id
from hmi_control_plane.catalog.tables.usage import Meter, UsageEventRow
from hmi_control_plane.catalog.tables.window_counts import (
    DomainLookupsRow,
    PendingWindowReport,
    WindowCountRow,
    WindowReporter,
)

__all__ = [
    "IS_CURRENT",
    "MAX_AMOUNT",
    "AdapterRow",
    "AdapterVersion",
    "ApiKey",
    "Artifact",
    "Base",
    "Cluster",
    "DeletedTenant",
    "DomainLookupsRow",
    "DomainPlacement",
    "DomainRow",
    "DomainVersion",
    "DomainVersionTable",
    "Invoice",
    "InvoiceLine",
    "InvoiceState",
    "LoadReport",
    "LoadState",
    "Meter",
    "PendingWindowReport",
    "Placement",
    "Price",
    "RecordedChoice",
    "RunArtifact",
    "RunPodRow",
    "Runtime",
    "Tenant",
    "TrainingRun",
    "UsageEventRow",
    "WindowCountRow",
    "WindowReporter",
    "new_tenant_id",
]
