"""Alembic migrations of the catalog, each with its way back.

Belongs here: Alembic's environment and revisions. Forbidden here: imports of the models by a revision, which
must go on meaning what it meant when it was written.
"""
