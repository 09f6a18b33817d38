"""The ``hmi`` command and the embedded default: what composes the planes on one machine.

Belongs here: the command line (``commands``), how answers look (``render``), the composition of control
plane, local reconciler and runtime child behind ``hmi up`` (``system``), and the demonstration (``demo``).
Forbidden here: rules of any plane. What a resource means, what a request costs and how a model runs are
decided elsewhere; this package asks over HTTP, prints the answer and keeps processes alive.
"""
