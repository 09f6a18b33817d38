"""Training: the programs that make a Domain's layers and table, and a task's adapter.

Belongs here: streaming rows, distillation, fitting adapters, metrics, the gate, checkpoints, reporting,
and ``python -m hmi_runtime.training``. Forbidden here: serving, placement, and writing to the catalog
other than through a run's progress and result; how tables and adapters are stored is their packages' own.
"""
