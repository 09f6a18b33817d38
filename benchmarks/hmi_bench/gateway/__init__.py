"""The time that the gateway adds: the same request sent to a runtime directly and through the gateway.

Processes and HTTP are real: the control plane as it is served, a runtime that answers at once (the other
benchmarks measure what it would compute), and a client with little overhead.
"""
