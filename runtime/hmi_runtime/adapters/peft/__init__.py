"""PEFT LoRA folders: import of adapters trained elsewhere, and export.

Tenants own these folders, so files are read within bounds, tensors only from safetensors, and anything that
is not understood is refused. PEFT's own loader is not used: see docs/decisions/peft-loader.md.
"""
