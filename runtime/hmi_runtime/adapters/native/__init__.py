"""The upper layers of BERT-like encoders, in C++ for processors with AVX-512, VNNI and bfloat16.

Belongs here: the C++ sources, their ctypes interface and the layers that call them. Forbidden here: torch's
C++ interface, so that one compiled library serves every version of torch.

Rows lie one behind the other without padding; one call computes all layers, in the
calling thread. ``tests/runtime/adapters/test_native_layers.py`` compares with the reference in float32.
"""
