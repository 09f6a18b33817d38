"""Fan-out: one text through several of a tenant's tasks, in one request and in other ways.

Belongs here: the ways of answering six tasks about one text, and their timing in turns. The runtime's own
pipeline runs in this process, without HTTP, which would be the same for every way.
Forbidden here: many tenants at once (see ``scale``), accuracy.
"""
