"""Serving: this runtime compared with others; every row of a batch belongs to another tenant.

Belongs here: the systems behind one interface, and their timing in turns.
Forbidden here: accuracy; figures of systems that did not run in the same process and run.
"""
