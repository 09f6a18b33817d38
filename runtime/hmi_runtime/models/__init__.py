"""Models in plain, differentiable torch: base models of every family, and the split model (hPLM) on top.

Belongs here: reading a checkpoint into the canonical ``Encoder``, tokenising, windows, a Domain's lower
layers with the bridge, and the frozen upper layers. Training trains these modules, and every fast path is
compared with them. Forbidden here: tables, adapters, batching.
"""
