"""Maru for LMCache: the shared pool as its L1, and as its in-process backend.

- :class:`MaruL1Manager` is an L1 of LMCache's multi-process mode over the pool.
- ``maru_lmcache.server.build_server_modules`` puts it under ``lmcache server``;
  the command ``maru-lmcache server`` does that with one option.
- :class:`CxlMemoryAdapter` is what LMCache's own ``MaruBackend`` allocates from.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maru_lmcache.adapter import CxlMemoryAdapter
    from maru_lmcache.config import MaruL1Config
    from maru_lmcache.l1 import MaruL1Manager

__all__ = ["CxlMemoryAdapter", "MaruL1Config", "MaruL1Manager"]

_HOMES = {
    "CxlMemoryAdapter": "maru_lmcache.adapter",
    "MaruL1Config": "maru_lmcache.config",
    "MaruL1Manager": "maru_lmcache.l1",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for then: LMCache, and with it torch, takes seconds."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
