"""Adapters: LoRA and bottleneck weights with a head, on top of the frozen upper layers.

Belongs here: adapter weights and their files, training modules, compression, PEFT folders (``peft``),
device slots, and the batched executor with its row-by-row reference. Forbidden here: tables and windows,
training loops, caching policy, HTTP, and any knowledge of tenants.
"""
