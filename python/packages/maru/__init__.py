"""One KV cache for many LLM serving instances, in one pool of CXL memory.

``MaruHandler`` stores, looks up and pins chunks of one size by key; a chunk is
written and read in place, in memory that all instances map. ``Client`` is the
session below it, with every request the server knows.

    from maru import MaruConfig, MaruHandler

    with MaruHandler(MaruConfig("unix:///run/user/1000/maru.sock")) as pool:
        handle = pool.alloc(4096)
        handle.buf[:5] = b"hello"
        pool.store("greeting", handle)
        print(bytes(pool.retrieve("greeting").view[:5]))
"""

from maru._native import (
    Client,
    Damaged,
    MaruError,
    Stale,
    Unreachable,
    __version__,
)
from maru.config import MaruConfig
from maru.handler import MaruHandler
from maru.pages import AllocHandle, MemoryInfo

__all__ = [
    "AllocHandle",
    "Client",
    "Damaged",
    "MaruConfig",
    "MaruError",
    "MaruHandler",
    "MemoryInfo",
    "Stale",
    "Unreachable",
    "__version__",
]
