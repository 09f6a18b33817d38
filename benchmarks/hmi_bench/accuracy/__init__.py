"""Accuracy: full fine-tuning, adapters on the unsplit model, and the hPLM, with the same rows and seeds.

Belongs here: reading task folders, training each method, the study that runs every cell once, its report.
Forbidden here: using test rows to choose a learning rate or an epoch.
"""
