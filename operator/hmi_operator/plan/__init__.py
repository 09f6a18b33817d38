"""What is to be done: pure functions from a resource and the observed world to a new status and steps.

Belongs here: the rules of reconciliation, and the types they speak in. Forbidden here: I/O, clocks (time
comes in with the world), and anything that differs between Kubernetes and one machine.
"""

from hmi_operator.plan.adapters import plan_adapter
from hmi_operator.plan.dependents import Dependent
from hmi_operator.plan.domains import plan_domain
from hmi_operator.plan.refusal import refuse
from hmi_operator.plan.steps import Plan, Step
from hmi_operator.plan.world import (
    CLUSTER,
    AdapterWorld,
    DomainWorld,
    JobView,
    Standing,
    Surroundings,
    Trouble,
)

__all__ = [
    "CLUSTER",
    "AdapterWorld",
    "Dependent",
    "DomainWorld",
    "JobView",
    "Plan",
    "Standing",
    "Step",
    "Surroundings",
    "Trouble",
    "plan_adapter",
    "plan_domain",
    "refuse",
]
