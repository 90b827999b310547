"""What a command asks of its own process."""

from __future__ import annotations

import ctypes
import os
import platform

# of malloc.h; blocks above the largest threshold that glibc takes are given back as before
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST_KEPT, LARGEST_KEPT = 2**30, 2**25


def keep_freed_memory() -> None:
    """Keep what is freed for what comes next, instead of giving it back to the system and fetching it again at each layer.

    Only where the C library is glibc; elsewhere nothing is done.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)


def take_huge_pages() -> None:
    """Let torch ask for memory in huge pages: a large tensor is then there after a few page faults, not after thousands.

    Only on Linux, where the system allows it ("madvise" or "always"), and only before torch makes its first tensor; elsewhere
    nothing changes. What the environment already says stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
