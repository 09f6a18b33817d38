"""Adapters: what a task adds to the frozen upper layers, and the batched run of many at once.

Belongs here: adapter weights and their files, training modules (LoRA, bottleneck, heads), compression,
PEFT's folder format, device slots, and the executor with its per-row reference.
Forbidden here: tables and windows, training loops, caching policy, HTTP, and any knowledge of tenants.
"""
