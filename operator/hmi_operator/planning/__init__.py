"""What is to be done: pure functions from a resource and the observed observed to a new status and actions.

Belongs here: the rules of reconciliation, and the types they speak in. Forbidden here: I/O, clocks (time
comes in with the observed), and anything that differs between Kubernetes and one machine.
"""

from hmi_operator.planning.actions import Action, Plan
from hmi_operator.planning.adapter import plan_adapter
from hmi_operator.planning.dependents import Dependent
from hmi_operator.planning.domain import plan_domain
from hmi_operator.planning.observed import (
    CLUSTER,
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
    "plan_adapter",
    "plan_domain",
    "rejected_status",
]
