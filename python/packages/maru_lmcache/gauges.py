"""LMCache's gauges of L1 memory, for this L1 too."""

from lmcache.v1.distributed.internal_api import L1ManagerInterface
from lmcache.v1.distributed.l1_manager import (
    L1Manager,
    _l1_staging_bytes_or_zero,
    _l1_usage_ratio_or_zero,
)
from lmcache.v1.mp_observability.otel_init import register_gauge

METER = "lmcache.l1_manager"


def add(manager: L1ManagerInterface) -> None:
    """Has the gauges show this manager.

    LMCache registers each of them once a process, when its first own L1 is
    made, and has them observe all that are in a table of its class: a gauge of
    our own under the same name would be another instrument.
    """
    with L1Manager._gauge_lock:
        L1Manager._gauge_targets[manager.l1_manager_id] = manager  # type: ignore[assignment]
        if L1Manager._gauge_registered:
            return
        L1Manager._gauge_registered = True
    register_gauge(
        METER,
        "lmcache_mp.l1_memory_usage_bytes",
        "Bytes currently held in L1 cache",
        lambda: L1Manager._observations(lambda m: m.get_memory_usage()[0]),
    )
    register_gauge(
        METER,
        "lmcache_mp.l1_usage_ratio",
        "L1 used/total ratio (0.0-1.0)",
        lambda: L1Manager._observations(_l1_usage_ratio_or_zero),
    )
    register_gauge(
        METER,
        "lmcache_mp.l1_staging_bytes",
        "Bytes held by L1 staging objects",
        lambda: L1Manager._observations(_l1_staging_bytes_or_zero),
    )


def remove(manager: L1ManagerInterface) -> None:
    """The gauges show it no more."""
    with L1Manager._gauge_lock:
        L1Manager._gauge_targets.pop(manager.l1_manager_id, None)
