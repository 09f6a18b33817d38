"""What a training process gives back of its memory.

Batches have other lengths at every step. By default glibc learns from the first large tensor that is freed to
keep everything up to 32 MiB in its heap, where what lives long holds up what could be given back: a run of a
Domain grew from 2 to 5 GB in an hour.
"""

import ctypes
import sys

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h; setting it ends the learning
_LARGE_BYTES = 4 << 20


def give_back_large_blocks() -> bool:
    """Let blocks of 4 MiB and more go back to the system when they are freed; return whether that took.

    It costs some page faults a step. Elsewhere than on glibc nothing happens.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_MMAP_THRESHOLD, _LARGE_BYTES) == 1
