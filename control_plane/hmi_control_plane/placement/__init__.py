"""Placement: which runtimes should serve which adapter.

Belongs here: the pure policy, and its application to the catalog (placements, their revisions and counters).
Forbidden here: HTTP, calls to runtimes, and anything about how an adapter is loaded once it is placed.
"""

from hmi_control_plane.placement.ledger import fill, lock, recount, replace_domain_version, settle
from hmi_control_plane.placement.policy import Candidate, Demand, place

__all__ = ["Candidate", "Demand", "fill", "lock", "place", "recount", "replace_domain_version", "settle"]
