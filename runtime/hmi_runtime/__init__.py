"""The runtime plane: everything that touches tensors.

Belongs here: base models, hierarchical models, lookup tables, adapters, training programs, and the
process that serves them. The only package that imports torch and transformers.
Forbidden here: SQL, Kubernetes, and imports of the control plane or the operator; it speaks to them
over HTTP with the types of ``hmi_api.internal.runs``.
"""
