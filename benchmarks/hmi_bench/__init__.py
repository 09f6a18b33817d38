"""Benchmarks of accuracy, serving, fan-out, scale and the gateway (docs/benchmarks.md).

Belongs here: programs that compare the product's own code with other systems in one run, and write tables,
JSON and plots. Forbidden here: code that the product imports; shortcuts that the product cannot take.
"""
