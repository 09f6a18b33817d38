"""Serving: this runtime beside what people use today, every row of a batch another tenant.

Belongs here: the systems, each in its own file behind one interface, and the timing in turns.
Forbidden here: accuracy; figures of systems that did not run in the same process and run.
"""
