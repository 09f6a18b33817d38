"""Alembic migrations of the catalog, each with a downgrade.

A revision never imports the table classes: it must keep the meaning that it had when it was written.
"""
