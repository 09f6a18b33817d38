"""The catalog: what is declared, what was published, who may use it and where it runs.

Belongs here: every read and write of the catalog's tables, as functions over a session that the caller opens.
A function that writes expects ``Database.write()``, so that all it does is one transaction.
Forbidden here: HTTP, tokens, the usage ledger's queries and money.
"""
