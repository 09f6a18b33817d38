"""Authentication by API key, admin key or internal token.

Belongs here: the format of keys, their hashes, the cache of checked keys, FastAPI dependencies that return an
identity. Forbidden here: what an identity may do with which resource; endpoints decide that by its tenant.
"""
