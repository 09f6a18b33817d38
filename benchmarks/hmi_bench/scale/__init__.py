"""Scale: many adapters registered on one runtime, few of them hot; and what one more costs.

Belongs here: making and registering thousands of adapters, traffic in which few are popular, what rests in
which tier, and the catalog's cost of one more adapter.
Forbidden here: peers (see ``serving``), models' quality.
"""
