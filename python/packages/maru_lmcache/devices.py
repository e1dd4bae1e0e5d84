"""The pool's devices, in LMCache's words."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from lmcache.v1.distributed.error import L1ReconfigureError
from lmcache.v1.memory_allocators.devdax_memory_allocator import (
    DevDaxArenaState,
    DevDaxArenaStatus,
)

from maru import MaruError
from maru._native import L1Manager
from maru_lmcache.cuda import Span

SHARED_MEMORY = "/dev/shm"


def not_here(what: str) -> L1ReconfigureError:
    """LMCache's error for a change that is the server's to make."""
    return L1ReconfigureError(
        409, f"{what} through one instance: the pool is shared; change it at the Maru server"
    )


def statuses(topology: dict[str, Any], manager: L1Manager) -> list[DevDaxArenaStatus]:
    """The pool's DAX devices, with what lies on them.

    Raises:
        L1ReconfigureError: There is none (409), or the server does not say what lies
            on them (503).
    """
    devices: list[dict[str, Any]] = topology["devices"]
    dax = [device for device in devices if device["path"].startswith("/dev/dax")]
    if not dax:
        raise L1ReconfigureError(
            409, "the pool is not on DAX devices, but on: " + ", ".join(d["path"] for d in devices)
        )
    try:
        regions = manager.regions()
    except MaruError as error:
        raise L1ReconfigureError(503, str(error)) from error
    return [_status(device, regions) for device in dax]


def _status(device: dict[str, Any], regions: list[dict[str, int]]) -> DevDaxArenaStatus:
    start, size = device["offset"], device["bytes"]
    here = [region for region in regions if start <= region["offset"] < start + size]
    held = {
        region["region"]: region["reserved"] + region["resident"] + region["quarantined"]
        for region in here
    }
    used = sum(held[region["region"]] * region["page_bytes"] for region in here)
    return DevDaxArenaStatus(
        device_path=device["path"],
        size_in_bytes=size,
        used_bytes=used,
        free_bytes=size - used,
        active_allocations=sum(held.values()),
        state=DevDaxArenaState.ACTIVE,
        # None can be taken away from here.
        is_primary=True,
    )


def status(topology: dict[str, Any], manager: L1Manager, path: str) -> DevDaxArenaStatus:
    """One DAX device of the pool.

    Raises:
        L1ReconfigureError: There is none at all (409), or not this one (404), or the
            server does not say (503).
    """
    for found in statuses(topology, manager):
        if _is_same(found.device_path, path):
            return found
    raise L1ReconfigureError(404, f"{path} is no device of the pool")


def owns(topology: dict[str, Any], path: str) -> bool:
    """Whether the pool lies on the device at ``path``."""
    return any(_is_same(device["path"], path) for device in topology["devices"])


def _is_same(device: str, path: str) -> bool:
    if device == path:
        return True
    try:
        return os.path.samefile(device, path)
    except OSError:
        return False


def shared_file(topology: dict[str, Any]) -> tuple[str, int] | None:
    """Name and bytes of the pool as a POSIX shared-memory segment, if it is one."""
    devices = topology["devices"]
    if len(devices) != 1 or devices[0]["offset"] != 0:
        return None
    folder, name = os.path.split(devices[0]["path"])
    if folder != SHARED_MEMORY or not os.path.exists(devices[0]["path"]):
        return None
    return name, devices[0]["bytes"]


def spans(
    topology: dict[str, Any], read_pool: torch.Tensor, write_pool: torch.Tensor
) -> Iterator[Span]:
    """Both views of each device, to be registered with a GPU."""
    for device in topology["devices"]:
        for pool, read_only in ((read_pool, True), (write_pool, False)):
            yield Span(pool.data_ptr() + device["offset"], device["bytes"], read_only)
