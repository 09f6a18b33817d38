"""The PLOT (Pre-computed Look-up Table): stored outputs of a Domain's lower layers, by window.

Belongs here: the hash index, the table and its file, building tables, lookup through a Domain's tree of
tables, and what happens on a miss. Forbidden here: positions, bridge and upper layers, adapters, batching
of requests, the artifact store.
"""

from hmi_runtime.tables.build import BuildReport, build_table
from hmi_runtime.tables.index import HashIndex
from hmi_runtime.tables.lookup import BatchLookup, LookupResult, LookupSource, TreeLookup, lookup_many
from hmi_runtime.tables.misses import MissSketch
from hmi_runtime.tables.reference import lookup_reference
from hmi_runtime.tables.table import PlotTable

__all__ = [
    "BatchLookup",
    "BuildReport",
    "HashIndex",
    "LookupResult",
    "LookupSource",
    "MissSketch",
    "PlotTable",
    "TreeLookup",
    "build_table",
    "lookup_many",
    "lookup_reference",
]
