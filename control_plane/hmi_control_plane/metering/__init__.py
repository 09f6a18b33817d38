"""Metering: usage events are on disk before a request is answered, and in the catalog exactly once.

``events`` defines them, ``spool`` and ``segments`` keep them on the gateway's disk, ``flusher`` moves them to
the catalog, ``records`` stores and sums them there, and ``reports`` answers queries. Prices are in
``billing``.
"""
