"""The PLOT (Pre-computed Look-up Table): stored outputs of a Domain's lower layers, by window.

Belongs here: the hash index, the table and its file, building tables, lookup through a Domain's tree of
tables, and what happens on a miss. Forbidden here: positions, bridge and upper layers, adapters, batching
of requests, the artifact store.
"""
