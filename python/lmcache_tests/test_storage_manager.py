"""LMCache's StorageManager with the pool as its L1, and a file system as L2."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lmcache.v1.distributed.api import (
    GroupedObjectKeys,
    MemoryLayoutDesc,
    ObjectKey,
    PrefetchTaskSpec,
)
from lmcache.v1.distributed.config import EvictionConfig, StorageManagerConfig
from lmcache.v1.distributed.l2_adapters.config import L2AdaptersConfig
from lmcache.v1.distributed.l2_adapters.fs_l2_adapter import FSL2AdapterConfig
from lmcache.v1.distributed.serde import SerdeConfig
from lmcache.v1.distributed.storage_manager import StorageManager
from processes import PATIENCE_S, Server, eventually

from maru import Client
from maru_lmcache import MaruL1Config, MaruL1Manager

LAYOUT = MemoryLayoutDesc(shapes=[torch.Size([2, 4, 256, 128])], dtypes=[torch.bfloat16])
KEYS = [
    ObjectKey(chunk_hash=bytes([i]) * 32, model_name="test/model", kv_rank=0x01000100)
    for i in range(4)
]


def storage(server: Server, folder: Path, policy: str) -> tuple[StorageManager, MaruL1Manager]:
    manager = MaruL1Manager(MaruL1Config(server.url, instance_id="storage"))
    config = StorageManagerConfig(
        l1_manager_config=manager.config,
        eviction_config=EvictionConfig(eviction_policy="LRU"),
        l2_adapter_config=L2AdaptersConfig(
            [FSL2AdapterConfig.from_dict({"type": "fs", "base_path": str(folder)})]
        ),
        prefetch_policy=policy,
    )
    return StorageManager(config, _l1_managers=(manager,)), manager


@pytest.fixture(params=["default", "retain"])
def policy(request: pytest.FixtureRequest) -> Iterator[str]:
    """Whether what comes back from L2 is for its reader alone, or stays in the pool."""
    return request.param


def prefetch(manager: StorageManager, keys: list[ObjectKey]):  # type: ignore[no-untyped-def]
    handle = manager.submit_prefetch_task(PrefetchTaskSpec([GroupedObjectKeys(keys, 0, LAYOUT)]))
    assert manager.wait_prefetch_status(handle, PATIENCE_S)
    result = manager.query_prefetch_status(handle)
    assert result is not None
    return result


def check_and_release(manager: StorageManager, owners: dict[ObjectKey, int]) -> None:
    with manager.read_prefetched_results(KEYS, l1_owners=owners) as objects:
        assert objects is not None
        for value, found in enumerate(objects, 1):
            assert bool((found.tensor == value).all())
    manager.finish_read_prefetched(KEYS, l1_owners=owners)


def test_through_l2_and_back(server: Server, tmp_path: Path, policy: str) -> None:
    manager, l1 = storage(server, tmp_path, policy)
    peer = Client(server.url)
    try:
        objects = manager.reserve_write(KEYS, LAYOUT)
        for value, key in enumerate(KEYS, 1):
            objects[key].tensor.fill_(value)
        manager.finish_write_by_owner(manager.prepare_write_completion(objects))
        # From L1 first; and the peer has them too.
        result = prefetch(manager, KEYS)
        assert (result.l1_hit_count, result.l2_hit_count) == (4, 0)
        check_and_release(manager, result.l1_owners)
        eventually(lambda: len(os.listdir(tmp_path)) == 4, "all chunks are in L2")
        # Out of L1, and back from L2.
        eventually(lambda: manager.delete_l1_keys(KEYS) == (4, 0), "nobody reads them any more")
        assert peer.stats()["pages_resident"] == 0
        result = prefetch(manager, KEYS)
        assert (result.l1_hit_count, result.l2_hit_count) == (0, 4)
        check_and_release(manager, result.l1_owners)
        stays = 4 if policy == "retain" else 0
        eventually(lambda: peer.stats()["pages_resident"] == stays, f"{stays} chunks stay")
        eventually(
            lambda: (peer.stats()["pins"], peer.stats()["pages_reserved"]) == (0, 0),
            "nothing is held",
        )
        assert manager.memcheck()
    finally:
        peer.close()
        manager.close()
    assert l1.get_l1_memory_desc() is None
    # One that never stored such chunks, and so learns of them from what it loads.
    anew, fresh = storage(server, tmp_path, policy)
    fresh.clear()
    try:
        result = prefetch(anew, KEYS)
        assert (result.l1_hit_count, result.l2_hit_count) == (0, 4)
        check_and_release(anew, result.l1_owners)
    finally:
        anew.close()


class Looks:
    """Counts how often somebody asks how full an L1 is."""

    def __init__(self, l1: MaruL1Manager) -> None:
        self.count = 0
        self._ask = l1.get_memory_usage
        l1.get_memory_usage = self._look  # type: ignore[method-assign]

    def _look(self) -> tuple[int, int]:
        self.count += 1
        return self._ask()


def test_lmcache_evicts_nothing_of_the_pool(server: Server, tmp_path: Path) -> None:
    """One evictor for one pool: however full it is, LMCache's controller, which looks
    once a second, deletes nothing; the server does, by itself."""
    manager, l1 = storage(server, tmp_path, "default")
    peer = Client(server.url)
    try:
        many = [
            ObjectKey(chunk_hash=i.to_bytes(32, "big"), model_name="test/model", kv_rank=0x01000100)
            for i in range(200)
        ]
        for start in range(0, len(many), 10):
            objects = manager.reserve_write(many[start : start + 10], LAYOUT)
            manager.finish_write_by_owner(manager.prepare_write_completion(objects))
        used, total = l1.get_memory_usage()
        assert used / total > EvictionConfig(eviction_policy="LRU").trigger_watermark
        looks = Looks(l1)
        eventually(lambda: looks.count >= 3, "LMCache has looked how full it is")
        counters = peer.stats()["counters"]
        assert counters["evicted_for_room"] + counters["evicted_by_watermark"] > 0
        assert counters["deleted"] == 0
    finally:
        peer.close()
        manager.close()


def test_through_a_serde(server: Server, tmp_path: Path) -> None:
    """LMCache's wrapper writes what it makes into temporary chunks, promotes them, and goes on
    with the objects that it wrote."""
    adapter = FSL2AdapterConfig.from_dict({"type": "fs", "base_path": str(tmp_path)})
    adapter.serde_config = SerdeConfig(type="fp8")
    l1 = MaruL1Manager(MaruL1Config(server.url))
    config = StorageManagerConfig(
        l1_manager_config=l1.config,
        eviction_config=EvictionConfig(eviction_policy="LRU"),
        l2_adapter_config=L2AdaptersConfig([adapter]),
    )
    manager = StorageManager(config, _l1_managers=(l1,))
    try:
        objects = manager.reserve_write(KEYS, LAYOUT)
        for value, key in enumerate(KEYS, 1):
            objects[key].tensor.fill_(value)
        manager.finish_write_by_owner(manager.prepare_write_completion(objects))
        eventually(lambda: len(os.listdir(tmp_path)) == 4, "all chunks are in L2")
        eventually(lambda: manager.delete_l1_keys(KEYS) == (4, 0), "nobody reads them any more")
        result = prefetch(manager, KEYS)
        assert result.l2_hit_count == 4
        check_and_release(manager, result.l1_owners)
    finally:
        manager.close()
