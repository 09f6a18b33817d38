"""Reconciliation: from what tenants declare to training runs, catalog records and status.

Belongs here: the pure planner (``planning``), the reconciler, and its ports on Kubernetes (``kubernetes``)
and on one machine (``embedded``). Forbidden here: torch, the catalog database, and imports of the control
plane, the runtime or the command line.
"""
