"""What the gateway adds to a request: the same answer asked of a runtime straight, and through the gateway.

Real processes and real HTTP: the control plane as it is served, a runtime that answers at once (what it would
compute is the other benchmarks' matter), and a client that costs as little as one can.
"""
