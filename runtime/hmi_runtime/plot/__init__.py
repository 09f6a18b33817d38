"""The PLOT, the precomputed lookup table that stands for a Domain's lower layers.

Belongs here: window keys, the hash index over them, the table and its file, counting and building, and
the look-up through a tree of tables, with its sketch of misses.
Forbidden here: positions, bridge and upper layers, adapters, batching of requests, the artifact store.
"""

from hmi_runtime.plot.build import BuildReport, build_table
from hmi_runtime.plot.index import HashIndex
from hmi_runtime.plot.keys import pack, unpack
from hmi_runtime.plot.lookup import BatchLookup, LookupResult, TreeLookup, lookup_many
from hmi_runtime.plot.reference import lookup_reference
from hmi_runtime.plot.sketch import MissSketch
from hmi_runtime.plot.steps import Level
from hmi_runtime.plot.table import PlotTable

__all__ = [
    "BatchLookup",
    "BuildReport",
    "HashIndex",
    "Level",
    "LookupResult",
    "MissSketch",
    "PlotTable",
    "TreeLookup",
    "build_table",
    "lookup_many",
    "lookup_reference",
    "pack",
    "unpack",
]
