"""A pytest plugin that runs LMCache's own tests of its L1 over Maru's.

The tests make their manager by calling `L1Manager(config)`, a name in their
module; here that name is a Maru manager on a server of its own, as large as
the configuration says. Nothing else of them is changed.
"""

import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import lmcache
import pytest
from lmcache.v1.distributed.config import L1ManagerConfig

from maru_lmcache import MaruL1Config, MaruL1Manager

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from processes import Server

MIB = 1 << 20

# LMCache's modules whose manager is made here.
TESTS = ("test_l1_interface.py", "test_l1_manager.py")
# Cases that cannot hold for a pool that others share, and why.
ONE_EVICTOR = "the server evicts, so no instance may: resident chunks are never its to evict"
TWO_VIEWS = "a reader has the read-only view of the page, so never the writer's object"
NO_OBJECT = "the books are the server's: there is no memory object for what nobody here has locked"
SWEPT = "an expired reservation is reclaimed in the background, before LMCache asks"
NOT_SHARED = {
    "test_reserve_read_staged_key_returns_key_not_exist": TWO_VIEWS,
    "test_first_admission_wins_and_later_copy_is_freed": NO_OBJECT,
    "test_get_object_state_existing_returns_state": NO_OBJECT,
    "test_concurrent_tagged_writers_same_keys": NO_OBJECT,
    "test_full_write_read_cycle": ONE_EVICTOR,
    "test_multi_reader_lifecycle_with_shared_key": ONE_EVICTOR,
    "test_evictable_key_in_ready_state": ONE_EVICTOR,
    "test_key_becomes_evictable_after_read_unlock": ONE_EVICTOR,
    "test_key_becomes_evictable_after_write_unlock": ONE_EVICTOR,
    "test_multiple_keys_mixed_evictability": ONE_EVICTOR,
    "test_key_with_multiple_read_locks_not_evictable": ONE_EVICTOR,
    "test_expired_staging_is_evictable_and_reclaimed": SWEPT,
    "test_eviction_policy_reclaims_abandoned_reservation": SWEPT,
}

_servers: list[Server] = []


def make_manager(config: L1ManagerConfig) -> MaruL1Manager:
    """A manager over a pool of its own, of the size that was asked for."""
    size = max(config.memory_config.size_in_bytes, 16 * MIB)
    region = 8 * MIB if size >= 64 * MIB else 2 * MIB
    server = Server(size, ("--region-size", str(region)))
    _servers.append(server)
    return MaruL1Manager(
        MaruL1Config(
            server.url,
            write_ttl_seconds=config.write_ttl_seconds,
            read_ttl_seconds=config.read_ttl_seconds,
        )
    )


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makemodule(module_path: Path) -> Generator[None, Any, Any]:
    """LMCache's cases of its own manager skip themselves where torch has no GPU,
    though none of them uses one."""
    if module_path.name not in TESTS:
        return (yield)
    device = lmcache.torch_dev
    is_available = device.is_available
    device.is_available = lambda: True
    try:
        module = yield
        # It is imported now.
        module.obj.L1Manager = make_manager
        return module
    finally:
        device.is_available = is_available


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        reason = NOT_SHARED.get(item.name)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_runtest_teardown(item: Any) -> None:
    while _servers:
        _servers.pop().stop()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Every case, and what came of it."""
    results: dict[str, str] = {}
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            if outcome == "skipped":
                results[report.nodeid] = (
                    f"cannot hold: {NOT_SHARED[report.location[2].split('.')[-1]]}"
                )
            elif outcome in ("passed", "failed", "error"):
                results[report.nodeid] = outcome
    terminalreporter.section("LMCache's cases over Maru's L1")
    for case, result in sorted(results.items()):
        terminalreporter.write_line(f"{case.rpartition('/')[2]}: {result}")
