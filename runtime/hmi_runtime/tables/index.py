"""A hash index from int64 keys to rows: open addressing over buckets of one cache line.

A bucket is eight contiguous slots, 64 bytes of keys, so a lookup reads one cache line for nearly every key
whatever the table's size; a binary search reads about twenty. At half load about one bucket in twenty is
full; a key whose bucket is full is stored in the next one with room, and ``probes`` is the longest such
distance. Alternatives are compared in docs/decisions/plot-index.md.
"""

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BUCKET_SLOTS = 8
EMPTY = -1

_KEYS_PER_BUCKET = 4  # load of at most a half
_HASH_BITS = 31


def home_bucket(keys: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """Return the home bucket (N,) int64 of each key (N,) int64.

    The hash is MurmurHash3's 64-bit finaliser (Appleby, public domain). Masks make the shifts of signed keys
    logical. The upper bits are scaled to the number of buckets, which need not be a power of two.
    """
    x = keys ^ ((keys >> 33) & 0x7FFFFFFF)
    x = x * -0x00AE502812AA7333
    x = x ^ ((x >> 33) & 0x7FFFFFFF)
    x = x * -0x3B314601E57A13AD
    return (((x >> 33) & 0x7FFFFFFF) * buckets) >> _HASH_BITS


class HashIndex:
    """Maps keys to rows, in host memory. Keys are not negative; a negative key is never found."""

    def __init__(self, slots: Tensor, rows: Tensor, probes: int) -> None:
        """Wrap ``slots`` (B, 8) int64, ``rows`` (B, 8) int32 and the number of buckets to probe."""
        self.slots = slots
        self.rows = rows
        self.probes = probes
        # numpy's calls cost a fraction of torch's at these sizes, and wake no thread pool.
        self._slots: NDArray[np.int64] = slots.numpy()
        self._rows: NDArray[np.int32] = rows.numpy().reshape(-1)

    @classmethod
    def with_room(cls, capacity: int) -> Self:
        """Return an empty index for up to ``capacity`` keys."""
        buckets = max(1, -(-capacity // _KEYS_PER_BUCKET))
        slots = torch.full((buckets, BUCKET_SLOTS), EMPTY, dtype=torch.int64)
        return cls(slots, torch.full((buckets, BUCKET_SLOTS), EMPTY, dtype=torch.int32), probes=0)

    @staticmethod
    def bytes_with_room(capacity: int) -> int:
        """Return the bytes of an index for up to ``capacity`` keys."""
        return max(1, -(-capacity // _KEYS_PER_BUCKET)) * BUCKET_SLOTS * (8 + 4)

    @classmethod
    def build(cls, keys: Tensor) -> Self:
        """Return an index of ``keys`` (N,) int64, all different, not negative; key i is in row i."""
        made = cls.with_room(len(keys))
        made.insert(keys, torch.arange(len(keys), dtype=torch.int32))
        return made

    def clear(self) -> None:
        """Remove all keys."""
        self.slots.fill_(EMPTY)
        self.rows.fill_(EMPTY)
        self.probes = 0

    def insert(self, keys: Tensor, rows: Tensor) -> None:
        """Add ``keys`` (N,) int64 with ``rows`` (N,) int32.

        The keys must be different, not negative and not in the index; all keys together must stay within
        the capacity it was made for.
        """
        slots, flat_rows = self._slots, self._rows
        buckets = len(slots)
        pending, values = keys.numpy(), rows.numpy()
        bucket = home_bucket(pending, buckets)
        probes = 0
        while len(pending):
            probes += 1
            order = np.argsort(bucket, kind="stable")
            pending, values, bucket = pending[order], values[order], bucket[order]
            rank = np.arange(len(bucket)) - np.searchsorted(bucket, bucket)  # among keys with the same bucket
            place = (slots[bucket] != EMPTY).sum(axis=1) + rank
            fits = place < BUCKET_SLOTS
            slots[bucket[fits], place[fits]] = pending[fits]
            flat_rows[bucket[fits] * BUCKET_SLOTS + place[fits]] = values[fits]
            # Keys move past full buckets only, so a lookup can stop at the first bucket with room.
            pending, values, bucket = pending[~fits], values[~fits], (bucket[~fits] + 1) % buckets
        self.probes = max(self.probes, probes)

    def find(self, keys: Tensor) -> Tensor:
        """Return the row (N,) int64 of each key (N,) int64, -1 where it is not in the index."""
        return torch.from_numpy(self._find(keys.numpy()))

    def _find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Read one bucket for every key, then loop for the few keys whose bucket is full of other keys."""
        slots, flat_rows = self._slots, self._rows
        found = np.full(len(keys), -1, dtype=np.int64)
        place = np.arange(len(keys))
        bucket = home_bucket(keys, len(slots))
        for _ in range(self.probes):
            line = slots.take(bucket, axis=0)  # (M, 8)
            match = np.flatnonzero(line == keys[:, None])
            which, slot = match >> 3, match & 7
            found[place[which]] = flat_rows[bucket[which] * BUCKET_SLOTS + slot]
            continues = line[:, -1] != EMPTY
            continues[which] = False
            rest = np.flatnonzero(continues)
            if not len(rest):
                break
            place, keys, bucket = place[rest], keys[rest], (bucket[rest] + 1) % len(slots)
        return found
