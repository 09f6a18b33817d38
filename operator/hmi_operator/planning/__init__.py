"""Planning: from a resource and what was observed, the next status and the actions. Without I/O or clocks.

The rules of reconciliation, the same on Kubernetes and on one machine. The time is part of what was observed.
"""

from hmi_operator.planning.actions import Action, Plan, Status
from hmi_operator.planning.adapter import plan_adapter
from hmi_operator.planning.domain import plan_domain
from hmi_operator.planning.observed import (
    CLUSTER,
    Dependent,
    DomainDependency,
    Environment,
    JobView,
    ObservedAdapter,
    ObservedDomain,
    PodProblem,
)
from hmi_operator.planning.validation import rejected_status

__all__ = [
    "CLUSTER",
    "Action",
    "Dependent",
    "DomainDependency",
    "Environment",
    "JobView",
    "ObservedAdapter",
    "ObservedDomain",
    "Plan",
    "PodProblem",
    "Status",
    "plan_adapter",
    "plan_domain",
    "rejected_status",
]
