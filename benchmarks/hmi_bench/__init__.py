"""What is claimed is measured here: accuracy, serving, fan-out and scale.

Belongs here: harnesses that run the product's own code against peers, in one run, and write tables, JSON
and plots. Forbidden here: anything the product imports; shortcuts that the product could not take.
"""
