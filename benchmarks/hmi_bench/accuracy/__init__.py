"""Accuracy: full fine-tuning, adapters on the unsplit model, and the hPLM, on the same rows and seeds.

Belongs here: reading task folders, the peers' training, the study that runs every cell once, its report.
Forbidden here: any look at a test split before a cell's learning rate and epoch are chosen.
"""
