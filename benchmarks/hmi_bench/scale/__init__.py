"""Scale: many adapters registered on one runtime, few of them popular; and the cost of one more.

Belongs here: making and registering thousands of adapters, traffic in which few are popular, the contents of
the tiers, and the catalog's cost of one more adapter.
Forbidden here: other systems (see ``serving``), models' quality.
"""
