"""Storage: the catalog's tables, the types of their columns, the database they live in and its migrations.

Belongs here: SQLAlchemy models (one file a theme), column types, engines, transactions, Alembic migrations.
Forbidden here: HTTP, decisions about tenants, runs or placement, and money arithmetic; those are made by the
packages that use these tables.
"""

from hmi_control_plane.storage.adapters import Adapter, AdapterVersion
from hmi_control_plane.storage.artifacts import Artifact, RunArtifact
from hmi_control_plane.storage.base import Base
from hmi_control_plane.storage.billing import Invoice, InvoiceLine, InvoiceState, Price
from hmi_control_plane.storage.clusters import Cluster
from hmi_control_plane.storage.database import Database
from hmi_control_plane.storage.domains import Domain, DomainVersion, DomainVersionTable
from hmi_control_plane.storage.placements import DomainPlacement, Placement
from hmi_control_plane.storage.runs import RunPod, TrainingRun
from hmi_control_plane.storage.runtimes import Residency, ResidencyState, Runtime
from hmi_control_plane.storage.tenants import ApiKey, DeletedTenant, Tenant, new_tenant_id
from hmi_control_plane.storage.types import LARGEST_AMOUNT
from hmi_control_plane.storage.usage import Meter, UsageEvent

__all__ = [
    "LARGEST_AMOUNT",
    "Adapter",
    "AdapterVersion",
    "ApiKey",
    "Artifact",
    "Base",
    "Cluster",
    "Database",
    "DeletedTenant",
    "Domain",
    "DomainPlacement",
    "DomainVersion",
    "DomainVersionTable",
    "Invoice",
    "InvoiceLine",
    "InvoiceState",
    "Meter",
    "Placement",
    "Price",
    "Residency",
    "ResidencyState",
    "RunArtifact",
    "RunPod",
    "Runtime",
    "Tenant",
    "TrainingRun",
    "UsageEvent",
    "new_tenant_id",
]
