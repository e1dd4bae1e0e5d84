"""What Maru's L1 is to LMCache beside the contract: objects, events, gauges, devices."""

import gc
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from lmcache.v1.distributed.api import L1BackendType, MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.config import L1ManagerConfig, L1MemoryManagerConfig
from lmcache.v1.distributed.error import L1Error, L1ReconfigureError
from lmcache.v1.distributed.internal_api import L1ManagerInterface, L1ManagerListener
from lmcache.v1.distributed.l1_manager import L1Manager
from lmcache.v1.mp_observability.event import Event, EventType
from lmcache.v1.mp_observability.event_bus import EventBus
from processes import Server, eventually
from test_cuda import Recorder

from maru import Client
from maru_lmcache import MaruL1Config, MaruL1Manager, cuda
from maru_lmcache.cuda import PORTABLE, READ_ONLY
from maru_lmcache.objects import L1MemoryObj

LAYOUT = MemoryLayoutDesc(
    [torch.Size([2, 16, 64]), torch.Size([16])], [torch.bfloat16, torch.float32]
)
SIZE = 2 * 16 * 64 * 2 + 16 * 4
KEYS = [
    ObjectKey(bytes([n]) * 32, "org/model", 0x02000200, object_group_id=1, cache_salt="tenant")
    for n in range(4)
]


class Told(L1ManagerListener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, list[ObjectKey]]] = []

    def on_l1_keys_reserved_read(self, keys: list[ObjectKey]) -> None:
        self.events.append(("reserved_read", keys))

    def on_l1_keys_read_finished(self, keys: list[ObjectKey]) -> None:
        self.events.append(("read_finished", keys))

    def on_l1_keys_reserved_write(self, keys: list[ObjectKey]) -> None:
        self.events.append(("reserved_write", keys))

    def on_l1_keys_write_finished(self, keys: list[ObjectKey]) -> None:
        self.events.append(("write_finished", keys))

    def on_l1_keys_finish_write_and_reserve_read(self, keys: list[ObjectKey]) -> None:
        self.events.append(("promoted", keys))

    def on_l1_keys_deleted_by_manager(self, keys: list[ObjectKey]) -> None:
        self.events.append(("deleted", keys))

    def on_l1_keys_accessed(self, keys: list[ObjectKey]) -> None:
        self.events.append(("accessed", keys))


@pytest.fixture
def l1(server: Server) -> Iterator[MaruL1Manager]:
    manager = MaruL1Manager(MaruL1Config(server.url, instance_id="a"))
    yield manager
    manager.close()


@pytest.fixture
def peer(server: Server) -> Iterator[MaruL1Manager]:
    manager = MaruL1Manager(MaruL1Config(server.url, instance_id="b"))
    yield manager
    manager.close()


def store(l1: MaruL1Manager, keys: list[ObjectKey], value: float = 1) -> None:
    for error, staged in l1.reserve_write(keys, [False] * len(keys), LAYOUT).values():
        assert error is L1Error.SUCCESS
        for index in range(len(LAYOUT.shapes)):
            staged.get_tensor(index).fill_(value)
    assert set(l1.finish_write(keys).values()) == {L1Error.SUCCESS}


def test_it_is_an_l1(l1: MaruL1Manager, peer: MaruL1Manager) -> None:
    assert isinstance(l1, L1ManagerInterface)
    own = L1Manager(
        L1ManagerConfig(L1MemoryManagerConfig(size_in_bytes=1 << 20, use_lazy=False, shm_name=""))
    )
    assert len({l1.l1_manager_id, peer.l1_manager_id, own.l1_manager_id}) == 3
    own.close()
    assert l1.config.eviction is not None
    assert l1.config.eviction.eviction_policy == "noop"
    desc = l1.get_l1_memory_desc()
    assert desc is not None
    assert desc.size == desc.stable_registration_size == 64 << 20
    assert l1.get_capacity_bytes_by_backend() == {L1BackendType.DRAM: 64 << 20}


def test_objects_lie_where_they_say(l1: MaruL1Manager, peer: MaruL1Manager) -> None:
    _, staged = l1.reserve_write(KEYS[:1], [False], LAYOUT)[KEYS[0]]
    desc = l1.get_l1_memory_desc()
    assert staged.data_ptr == desc.ptr + staged.shm_offset
    assert (staged.get_size(), staged.shm_byte_length) == (SIZE, SIZE)
    assert staged.get_physical_size() == 8192, "pages are cut in 4096 bytes"
    assert staged.get_shapes() == LAYOUT.shapes
    assert staged.get_dtypes() == LAYOUT.dtypes
    staged.get_tensor(0).fill_(1.5)
    staged.get_tensor(1).fill_(2.5)
    with pytest.raises(ValueError, match="another L1"):
        staged.set_l1_manager(l1.l1_manager_id + 1000)
    l1.finish_write(KEYS[:1])
    # The peer never wrote such a key: it has the bytes, and no layout.
    error, flat = peer.reserve_read(KEYS[:1])[KEYS[0]]
    assert error is L1Error.SUCCESS
    assert flat.tensor.dtype == torch.uint8
    assert flat.tensor.shape == (SIZE,)
    assert flat.shm_offset == staged.meta.address
    peer.finish_read(KEYS[:1])
    # One that was told of the layout, or writes so itself, sees tensors.
    assert peer.register_kv_layout(LAYOUT, 16) == SIZE // 16
    _, read = peer.reserve_read(KEYS[:1])[KEYS[0]]
    assert bool((read.get_tensor(0) == 1.5).all())
    assert bool((read.get_tensor(1) == 2.5).all())
    assert bytes(read.byte_array) == bytes(flat_bytes(l1, KEYS[0]))
    peer.finish_read(KEYS[:1])


def flat_bytes(l1: MaruL1Manager, key: ObjectKey) -> bytes:
    _, read = l1.reserve_read([key])[key]
    found = bytes(read.byte_array)
    l1.finish_read([key])
    return found


def test_workers_say_how_chunks_lie(server: Server, l1: MaruL1Manager) -> None:
    store(l1, KEYS[:1], 3)
    told: list[ObjectKey] = []

    def source(key: ObjectKey) -> MemoryLayoutDesc:
        told.append(key)
        return LAYOUT

    other = MaruL1Manager(MaruL1Config(server.url), layouts=source)
    _, read = other.reserve_read(KEYS[:1])[KEYS[0]]
    assert not told, "nobody has looked at it yet"
    assert bool((read.get_tensor(0) == 3).all())
    assert told == KEYS[:1]
    other.finish_read(KEYS[:1])
    other.close()


def test_an_object_is_over_with_its_lock(l1: MaruL1Manager) -> None:
    _, staged = l1.reserve_write(KEYS[:1], [False], LAYOUT)[KEYS[0]]
    assert staged.is_valid()
    l1.finish_write(KEYS[:1])
    assert not staged.is_valid()
    assert staged.tensor is None
    with pytest.raises(RuntimeError, match="over"):
        _ = staged.byte_array
    _, read = l1.reserve_read(KEYS[:1], read_locks=2)[KEYS[0]]
    assert l1.unsafe_read(KEYS[:1])[KEYS[0]][1] is read
    l1.finish_read(KEYS[:1])
    assert read.is_valid()
    l1.finish_read(KEYS[:1])
    assert not read.is_valid()
    assert read.tensor is None


def test_errors_are_values(server: Server, l1: MaruL1Manager) -> None:
    assert l1.reserve_read([]) == l1.finish_write([]) == l1.delete([]) == {}
    assert l1.finish_read(KEYS[:1]) == {KEYS[0]: L1Error.KEY_NOT_EXIST}
    store(l1, KEYS[:1])
    server.kill()
    # Whatever it is asked: no answer is a miss.
    assert l1.reserve_read(KEYS[:1]) == {KEYS[0]: (L1Error.KEY_NOT_EXIST, None)}
    assert l1.reserve_write(KEYS[1:2], [False], LAYOUT) == {KEYS[1]: (L1Error.OUT_OF_MEMORY, None)}
    assert not l1.memcheck()
    server.start()
    eventually(
        lambda: l1.reserve_read(KEYS[:1])[KEYS[0]][0] is L1Error.SUCCESS, "the server is back"
    )
    l1.finish_read(KEYS[:1])


def test_the_first_contract_is_understood(l1: MaruL1Manager) -> None:
    with pytest.raises(ValueError, match="mode"):
        l1.reserve_write(KEYS[:1], [False], LAYOUT, mode="update")
    with pytest.raises(ValueError, match="flags"):
        l1.reserve_write(KEYS, [False], LAYOUT)
    l1.reserve_write(KEYS[:1], [False], LAYOUT, mode="new")
    l1.finish_write_and_reserve_read(KEYS[:1], extra_count=2)
    for _ in range(3):
        assert l1.finish_read(KEYS[:1]) == {KEYS[0]: L1Error.SUCCESS}
    assert l1.finish_read(KEYS[:1]) != {KEYS[0]: L1Error.SUCCESS}
    with pytest.raises(ValueError, match="tokens a chunk"):
        l1.register_kv_layout(LAYOUT, 7)
    huge = MemoryLayoutDesc([torch.Size([1 << 30])], [torch.uint8])
    with pytest.raises(ValueError, match="region-size"):
        l1.register_kv_layout(huge, 256)


def test_listeners_and_events(l1: MaruL1Manager, peer: MaruL1Manager, bus: list[Event]) -> None:
    told = Told()
    l1.register_listener(told)
    store(l1, KEYS[:2])
    l1.reserve_read(KEYS[:1])
    l1.finish_read(KEYS[:1])
    l1.touch_keys(KEYS[:1])
    l1.reserve_write(KEYS[2:3], [True], LAYOUT)
    l1.finish_write_and_reserve_read(KEYS[2:3])
    l1.finish_read(KEYS[2:3])
    l1.delete(KEYS[:1])
    expected = [
        ("reserved_write", KEYS[:2]),
        ("write_finished", KEYS[:2]),
        ("reserved_read", KEYS[:1]),
        ("read_finished", KEYS[:1]),
        ("accessed", KEYS[:1]),
        ("reserved_write", KEYS[2:3]),
        ("promoted", KEYS[2:3]),
        ("read_finished", KEYS[2:3]),
        ("deleted", KEYS[2:3]),
        ("deleted", KEYS[:1]),
    ]
    assert told.events == expected
    # What a peer deletes is told a moment later, once the server's events have begun to be heard.
    peer.delete(KEYS[1:2])
    store(peer, KEYS[3:])

    def hears() -> bool:
        peer.delete(KEYS[3:])
        heard = ("deleted", KEYS[3:]) in told.events
        if not heard:
            store(peer, KEYS[3:])
        return heard

    eventually(hears, "what a peer deletes is told")
    kinds = {event.event_type for event in bus}
    assert kinds >= {
        EventType.L1_WRITE_RESERVED,
        EventType.L1_WRITE_FINISHED,
        EventType.L1_WRITE_FINISHED_AND_READ_RESERVED,
        EventType.L1_READ_RESERVED,
        EventType.L1_READ_FINISHED,
        EventType.L1_KEYS_EVICTED,
    }
    finished = next(event for event in bus if event.event_type is EventType.L1_WRITE_FINISHED)
    assert finished.metadata["keys"] == KEYS[:2]
    assert finished.metadata["l1_tag"] == "_default"
    assert [meta.size_bytes for meta in finished.metadata["meta"]] == [SIZE, SIZE]


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What is published, from before the managers are made."""
    published: list[Event] = []
    monkeypatch.setattr(EventBus, "publish", lambda _, event: published.append(event))
    return published


def test_a_listener_may_call_back_and_may_fail(l1: MaruL1Manager) -> None:
    class Caller(Told):
        def on_l1_keys_write_finished(self, keys: list[ObjectKey]) -> None:
            assert l1.reserve_read(keys)[keys[0]][0] is L1Error.SUCCESS
            assert l1.finish_read(keys)[keys[0]] is L1Error.SUCCESS
            raise RuntimeError("on purpose")

    after = Told()
    l1.register_listener(Caller())
    l1.register_listener(after)
    store(l1, KEYS[:1])
    assert ("write_finished", KEYS[:1]) in after.events


def test_gauges_show_it(l1: MaruL1Manager) -> None:
    store(l1, KEYS[:1])
    l1.reserve_write(KEYS[1:2], [False], LAYOUT)
    labels = {"l1_tag": "_default", "backend": "dram"}
    assert observed(l1) == [(SIZE, labels)]
    l1.close()
    assert observed(l1) == []


def observed(l1: MaruL1Manager) -> list[tuple[int | float, dict[str, object]]]:
    """What LMCache's gauge of staged bytes shows of a manager."""

    def mine(manager: object) -> int:
        return l1.get_staging_memory_usage() if manager is l1 else -1

    return [one for one in L1Manager._observations(mine) if one[0] >= 0]


def test_devices_are_the_servers(server: Server, l1: MaruL1Manager) -> None:
    for call in (
        l1.get_devdax_arena_statuses,
        lambda: l1.get_devdax_arena_status("/dev/dax9.9"),
        lambda: l1.add_devdax_device("/dev/dax9.9", 1 << 30),
        lambda: l1.remove_devdax_device("/dev/dax9.9"),
    ):
        with pytest.raises(L1ReconfigureError) as refused:
            call()
        assert refused.value.status_code == 409
        assert "error" in refused.value.payload
    assert l1.owns_device(str(server.pool))
    assert not l1.owns_device("/dev/dax9.9")
    assert l1.memory_region_count() == 1
    assert l1.shared_file() == (server.pool.name, 64 << 20)


def test_it_is_registered_with_a_gpu(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(cuda, "runtime", lambda: recorder)
    manager = MaruL1Manager(MaruL1Config(server.url))
    sizes = [(size, flags) for _, size, flags in recorder.asked]
    assert sizes == [(64 << 20, PORTABLE | READ_ONLY), (64 << 20, PORTABLE)]
    desc = manager.get_l1_memory_desc()
    assert desc is not None
    assert recorder.asked[1][0] == desc.ptr
    manager.close()
    assert not recorder.registered
    # One that the driver does not take works all the same, only slower.
    refusing = Recorder(fails_at=1)
    monkeypatch.setattr(cuda, "runtime", lambda: refusing)
    manager = MaruL1Manager(MaruL1Config(server.url))
    assert not refusing.registered
    store(manager, KEYS[:1])
    manager.close()


def test_nothing_is_left_of_a_manager_that_nobody_closed(server: Server) -> None:
    manager = MaruL1Manager(MaruL1Config(server.url, instance_id="left"))
    manager.reserve_write(KEYS[:1], [False], LAYOUT)
    watcher = MaruL1Manager(MaruL1Config(server.url, instance_id="watcher"))
    assert watcher.get_memory_usage()[0] > 0
    del manager
    gc.collect()
    eventually(lambda: watcher.get_memory_usage()[0] == 0, "its reservation is given back")
    watcher.close()


def test_a_promoted_object_stays_what_it_was(l1: MaruL1Manager) -> None:
    """LMCache's serde wrappers load into a staged object, promote it, and go on with it."""
    for passes in (True, False):
        key = KEYS[int(passes)]
        _, staged = l1.reserve_write([key], [passes], LAYOUT, tag="t")[key]
        staged.get_tensor(0).fill_(4)
        staged.set_used_size(100)
        _, read = l1.finish_write_and_reserve_read([key], tag="t")[key]
        assert read is staged
        assert staged.is_valid()
        assert staged.get_size() == 100
        assert len(staged.byte_array) == 100
        l1.finish_read([key])
        assert not staged.is_valid()


def test_who_was_first_is_read_and_the_other_is_over(l1: MaruL1Manager) -> None:
    _, late = l1.reserve_write(KEYS[:1], [False], LAYOUT, tag="late")[KEYS[0]]
    late.get_tensor(0).fill_(2)
    store(l1, KEYS[:1], 1)
    _, read = l1.finish_write_and_reserve_read(KEYS[:1], tag="late")[KEYS[0]]
    assert read is not late
    assert not late.is_valid()
    assert bool((read.get_tensor(0) == 1).all())
    l1.finish_read(KEYS[:1])


def test_threads_see_a_whole_object_or_none(l1: MaruL1Manager) -> None:
    """It is made when it is first looked at, whoever that is."""
    store(l1, KEYS[:1])
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    wrong: list[object] = []
    try:
        for _ in range(300):
            _, read = l1.reserve_read(KEYS[:1])[KEYS[0]]
            barrier = threading.Barrier(3)

            def look(read: L1MemoryObj = read, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                seen = read.get_size(), read.get_l1_manager(), len(read.byte_array)
                if seen != (SIZE, l1.l1_manager_id, SIZE):
                    wrong.append(seen)

            threads = [threading.Thread(target=look) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            l1.finish_read(KEYS[:1])
    finally:
        sys.setswitchinterval(before)
    assert not wrong


def test_another_pool_in_the_place_of_the_first_is_no_pool(
    server: Server, l1: MaruL1Manager
) -> None:
    """Offsets, tensors, registrations and what workers map are of the first."""
    store(l1, KEYS[:1])
    server.replace()
    for _ in range(3):
        assert l1.reserve_read(KEYS[:1]) == {KEYS[0]: (L1Error.KEY_NOT_EXIST, None)}
        assert l1.reserve_write(KEYS[1:2], [False], LAYOUT) == {
            KEYS[1]: (L1Error.OUT_OF_MEMORY, None)
        }
    anew = MaruL1Manager(MaruL1Config(server.url))
    store(anew, KEYS[:1])
    anew.close()


def test_a_server_that_is_away_is_waited_for_once(server: Server) -> None:
    """Not for each chunk that is held."""
    manager = MaruL1Manager(MaruL1Config(server.url, timeout_ms=200))
    store(manager, KEYS)
    held = manager.reserve_read(KEYS)
    server.kill()
    eventually(
        lambda: (
            {error for error, _ in manager.unsafe_read(KEYS).values()} == {L1Error.KEY_NOT_READABLE}
        ),
        "nobody can say any more that they are protected",
    )
    # To look at one asks nobody.
    assert all(read.get_tensor(0) is not None for _, read in held.values())
    assert manager.owns_device(str(server.pool))
    assert manager.get_capacity_bytes_by_backend() == {L1BackendType.DRAM: 64 << 20}
    manager.close()
    server.start()


def test_what_others_still_write_to_is_quarantined() -> None:
    """Rule 7: workers write on, whatever becomes of who reserved for them."""
    server = Server(16 << 20, ("--quarantine-ms", "600000"))
    try:
        client = Client(server.url)
        manager = MaruL1Manager(MaruL1Config(server.url), outside_writers=True)
        manager.reserve_write(KEYS[:1], [False], LAYOUT)
        assert manager.delete(KEYS[:1], force=True) == {KEYS[0]: L1Error.KEY_IS_LOCKED}
        manager.clear(force=True)
        assert client.stats()["pages_reserved"] == 1
        manager.close()
        eventually(lambda: client.stats()["pages_reserved"] == 0, "the session is over")
        assert client.stats()["pages_quarantined"] == 1
        client.close()
    finally:
        server.stop()


def test_a_closed_manager_goes_though_a_listener_refers_to_it(server: Server) -> None:
    manager = MaruL1Manager(MaruL1Config(server.url))
    listener = Told()
    listener.manager = manager  # type: ignore[attr-defined]
    manager.register_listener(listener)
    manager.close()
    gone = weakref.ref(manager)
    del manager, listener
    gc.collect()
    assert gone() is None
