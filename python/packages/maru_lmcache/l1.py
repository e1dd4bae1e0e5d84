"""LMCache's L1 over the shared pool."""

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lmcache.v1.distributed.api import L1BackendType, MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.config import (
    EvictionConfig,
    L1ManagerConfig,
    L1MemoryManagerConfig,
)
from lmcache.v1.distributed.error import L1Error
from lmcache.v1.distributed.internal_api import (
    L1ManagerInterface,
    L1ManagerListener,
    L1MemoryDesc,
    L1OperationResult,
)
from lmcache.v1.distributed.l1_manager import next_l1_manager_id
from lmcache.v1.memory_allocators.devdax_memory_allocator import (
    DevDaxArenaStatus,
    DevDaxRemoveMode,
)
from lmcache.v1.mp_observability.event import Event, EventType
from lmcache.v1.mp_observability.event_bus import get_event_bus

from maru._native import Chunks
from maru._native import L1Manager as NativeL1Manager
from maru_lmcache import cuda, devices, gauges
from maru_lmcache.config import MaruL1Config
from maru_lmcache.events import Bridge
from maru_lmcache.layouts import Layout, Layouts, LayoutSource
from maru_lmcache.objects import L1MemoryObj
from maru_lmcache.tensors import bytes_tensor

logger = logging.getLogger(__name__)

# By the native module's codes.
_ERRORS: tuple[L1Error, ...] = (L1Error.SUCCESS, *L1Error)


@dataclass(frozen=True)
class _Lock:
    """A lock as ``get_object_state`` shows it."""

    count: int

    def is_locked(self) -> bool:
        return self.count > 0


@dataclass(frozen=True)
class ObjectState:
    """What is known of a resident chunk.

    Attributes:
        read_lock: This manager's read locks on it.
        write_lock: Never locked: what is being written is not resident.
        is_temporary: It dies after its last read.
    """

    read_lock: _Lock
    is_temporary: bool
    write_lock: _Lock = _Lock(0)


class MaruL1Manager(L1ManagerInterface):
    """An L1 that all instances of a Maru server share.

    It keeps LMCache's contract (``L1ManagerInterface``), with what follows from
    sharing:

    - What another instance stored is resident here too: writing it is refused,
      which saves the copy.
    - The server evicts, for all; ``config.eviction`` is ``noop``, and
      ``is_key_evictable`` is true for expired reservations only.
    - ``delete`` and ``clear``, with ``force`` or without, leave alone what
      another instance reads or writes.
    - A server that is away makes reads misses, writes ``OUT_OF_MEMORY``, and
      the end of a write ``KEY_IN_WRONG_STATE``.
    - A memory object is valid only while its lock is held: afterwards its
      tensor is ``None``.

    Args:
        config: Where the pool is, and what this instance may do there.
        layouts: Says how the workers of this server see chunks that another
            instance wrote; else they are seen as what was written here under
            such keys.
        outside_writers: Other processes write into staged chunks, by their
            offsets in the pool.

    Raises:
        MaruError: The server cannot be reached, or refuses.
    """

    def __init__(
        self,
        config: MaruL1Config,
        *,
        layouts: LayoutSource | None = None,
        outside_writers: bool = False,
    ) -> None:
        self.maru_config = config
        self._layouts = Layouts(layouts)
        self._native = NativeL1Manager.maru(
            config.server_url,
            pool_bytes=config.pool_bytes,
            instance=config.instance_id,
            timeout_seconds=config.timeout_ms / 1000,
            in_flight_max=config.max_inflight,
            eager_map=config.eager_map,
            auto_expand=config.auto_expand,
            verify=config.verify,
            host=config.host_id,
            visibility_plugin=config.visibility_plugin,
            outside_writers=outside_writers,
            write_ttl_seconds=config.write_ttl_seconds,
            read_ttl_seconds=config.read_ttl_seconds,
        )
        # Another pool it never has: with another server in its place it would only miss.
        self._topology = self._native.topology()
        self._read_pool = bytes_tensor(self._native.memory())
        self._write_pool = bytes_tensor(self._native.memory(writable=True))
        self._config = self._as_lmcache_config()
        self._l1_manager_id = next_l1_manager_id()
        self._event_bus = get_event_bus()
        # One memory object a chunk that is held, as long as somebody has it.
        self._objects: weakref.WeakValueDictionary[int, L1MemoryObj] = weakref.WeakValueDictionary()
        # What is staged, by the writer's tag and the key.
        self._staged: weakref.WeakValueDictionary[tuple[str, ObjectKey], L1MemoryObj] = (
            weakref.WeakValueDictionary()
        )
        self._objects_lock = threading.Lock()
        self._bridge = Bridge(config.tag, self._event_bus, self._layouts, self._backend())
        self._native.register_listener(self._bridge)
        self._registration = self._register_with_gpu()
        gauges.add(self)

    def _as_lmcache_config(self) -> L1ManagerConfig:
        _, total = self._native.memory_usage()
        return L1ManagerConfig(
            # Nothing is allocated of it: it says how large this L1 is.
            memory_config=L1MemoryManagerConfig(size_in_bytes=total, use_lazy=False, shm_name=""),
            write_ttl_seconds=self.maru_config.write_ttl_seconds,
            read_ttl_seconds=self.maru_config.read_ttl_seconds,
            tag=self.maru_config.tag,
            # One evictor for one pool: the server. LMCache's has nothing to do, however full it is.
            eviction=EvictionConfig(eviction_policy="noop", trigger_watermark=1.0),
        )

    def _backend(self) -> L1BackendType:
        capacity = self.get_capacity_bytes_by_backend()
        return max(capacity, key=lambda kind: capacity[kind], default=L1BackendType.DRAM)

    def _register_with_gpu(self) -> cuda.Registration | None:
        runtime = cuda.runtime()
        if runtime is None:
            return None
        spans = devices.spans(self._topology, self._read_pool, self._write_pool)
        try:
            return cuda.register(spans, runtime)
        except cuda.RegistrationError as error:
            logger.warning("the pool is not registered with the GPU: %s", error)
            return None

    # What it is

    @property
    def l1_manager_id(self) -> int:
        """Tells the L1s of this process apart; the owner of its memory objects."""
        return self._l1_manager_id

    @property
    def config(self) -> L1ManagerConfig:
        """What it was built from, as LMCache sees it."""
        return self._config

    def register_listener(self, listener: L1ManagerListener) -> None:
        """Tells ``listener`` from now on what happens, in order, outside of all locks;
        also what the server evicted, and other instances deleted, a moment later."""
        self._bridge.listeners.append(listener)

    def register_kv_layout(self, layout_desc: MemoryLayoutDesc, tokens_per_chunk: int) -> int:
        """Says how chunks of such a size are to be seen, and whether they can be stored.

        Returns:
            Bytes of one token.

        Raises:
            ValueError: They are not of whole tokens, or larger than the pool's
                largest page.
        """
        layout = self._layouts.register(layout_desc)
        return self._native.register_kv_layout(layout.size_bytes, tokens_per_chunk)

    # Reading

    def reserve_read(
        self, keys: list[ObjectKey], read_locks: int = 1, *, extra_count: int = 0
    ) -> dict[ObjectKey, L1OperationResult]:
        """Takes read locks on each resident chunk. ``extra_count`` is what the first
        form of the contract had: so many locks more."""
        return self._read_objects(
            keys, self._native.reserve_read(keys, _locks(read_locks, extra_count))
        )

    def unsafe_read(self, keys: list[ObjectKey]) -> dict[ObjectKey, L1OperationResult]:
        """The chunks that are read-locked already. One that is not what was stored is
        ``KEY_NOT_READABLE``."""
        return self._read_objects(keys, self._native.unsafe_read(keys))

    def finish_read(
        self, keys: list[ObjectKey], read_locks: int = 1, *, extra_count: int = 0
    ) -> dict[ObjectKey, L1Error]:
        """Gives read locks back. ``KEY_IN_WRONG_STATE``: what was read does not count."""
        return _errors(keys, self._native.finish_read(keys, _locks(read_locks, extra_count)))

    # Writing

    def reserve_write(
        self,
        keys: list[ObjectKey],
        is_temporary: list[bool],
        layout_desc: MemoryLayoutDesc,
        tag: str = "",
        *,
        mode: str = "new",
    ) -> dict[ObjectKey, L1OperationResult]:
        """Stages space for each chunk, invisible until finished.

        Raises:
            ValueError: ``keys`` and ``is_temporary`` differ in length, or
                ``mode``, of the contract's first form, is not ``new``.
        """
        if mode != "new":
            raise ValueError(f"mode={mode!r}: chunks are written once, so it can only be 'new'")
        if len(keys) != len(is_temporary):
            raise ValueError(f"{len(keys)} keys but {len(is_temporary)} is_temporary flags")
        stay = [key for key, passes in zip(keys, is_temporary, strict=True) if not passes]
        passing = [key for key, passes in zip(keys, is_temporary, strict=True) if passes]
        layout = self._layouts.learn(layout_desc, stay, passing)
        chunks = self._native.reserve_write(keys, is_temporary, layout.size_bytes, tag)
        results = self._results(keys, chunks, self._write_pool, lambda *_: layout)
        staged = [key for key, (error, _) in results.items() if error is L1Error.SUCCESS]
        with self._objects_lock:
            for key in staged:
                self._staged[tag, key] = results[key][1]
        if staged:
            self._event_bus.publish(
                Event(
                    event_type=EventType.L1_WRITE_RESERVED,
                    metadata={"l1_tag": self._config.tag, "keys": staged, "tag": tag},
                )
            )
        return results

    def finish_write(self, keys: list[ObjectKey], tag: str = "") -> dict[ObjectKey, L1Error]:
        """Makes what ``tag`` staged resident, for all instances."""
        return _errors(keys, self._native.finish_write(keys, tag))

    def finish_write_and_reserve_read(
        self,
        keys: list[ObjectKey],
        read_locks: int = 1,
        tag: str = "",
        *,
        extra_count: int = 0,
    ) -> dict[ObjectKey, L1OperationResult]:
        """The same, and read-locks what is resident then: this chunk, or that of who
        was first."""
        with self._objects_lock:
            staged = [self._staged.pop((tag, key), None) for key in keys]
        chunks = self._native.finish_write_and_reserve_read(
            keys, _locks(read_locks, extra_count), tag
        )
        for index, (found, code) in enumerate(zip(staged, chunks.codes, strict=True)):
            if found is None or _ERRORS[code] is not L1Error.SUCCESS:
                continue
            place = chunks.place(index)
            with self._objects_lock:
                # Theirs, if somebody was first, lies elsewhere.
                if place[1] == found.offset and place[0] not in self._objects:
                    found.promote(chunks, index, self._read_pool, place)
                    self._objects[place[0]] = found
        return self._read_objects(keys, chunks)

    def finish_write_and_delete(
        self, keys: list[ObjectKey], tag: str = ""
    ) -> dict[ObjectKey, L1Error]:
        """Discards what ``tag`` staged; nobody ever sees it."""
        return _errors(keys, self._native.finish_write_and_delete(keys, tag))

    # Deleting

    def delete(self, keys: list[ObjectKey], force: bool = False) -> dict[ObjectKey, L1Error]:
        """Deletes resident chunks, for all instances; not those that another reads."""
        return _errors(keys, self._native.delete(keys, force))

    def clear(self, force: bool = False) -> None:
        """Deletes all chunks that nobody reads, whoever stored them."""
        self._native.clear(force)

    def touch_keys(self, keys: list[ObjectKey]) -> None:
        """Counts the keys as used; the server hears of it later."""
        self._bridge.accessed(keys)
        self._native.touch_keys(keys)

    def is_key_evictable(self, key: ObjectKey) -> bool:
        """Whether LMCache may delete the key: only an expired reservation."""
        return self._native.is_key_evictable(key)

    # What there is

    def get_memory_usage(self) -> tuple[int, int]:
        """Bytes used and bytes there are, of the whole pool."""
        return self._native.memory_usage()

    def get_staging_memory_usage(self) -> int:
        """Bytes that this manager stages."""
        return self._native.staging_memory_usage()

    def get_capacity_bytes_by_backend(self) -> dict[L1BackendType, int]:
        """Bytes of the pool's devices, by the kind of memory."""
        capacity = self._native.capacity_bytes_by_backend()
        return {L1BackendType(kind): size for kind, size in capacity.items()}

    def get_l1_memory_desc(self) -> L1MemoryDesc | None:
        """The pool as the one buffer that it is, for adapters that register memory.
        ``None`` once closed."""
        desc = self._native.memory_desc()
        return None if desc is None else L1MemoryDesc(*desc)

    def get_object_state(self, key: ObjectKey) -> ObjectState | None:
        """What is known of a resident chunk; ``None`` for one that is not."""
        state = self._native.object_state(key)
        return None if state is None else ObjectState(_Lock(state[0]), state[1])

    def report_status(self) -> dict[str, Any]:
        """Numbers for the status page, under LMCache's names."""
        status = self._native.report_status()
        status["maru_server_url"] = self.maru_config.server_url
        return status

    def memcheck(self) -> bool:
        """Whether the server answers, and its books are in order."""
        return self._native.memcheck()

    def close(self) -> None:
        """Gives back everything that this manager holds. What it stored stays."""
        gauges.remove(self)
        self._native.close()
        # They may refer to this manager, through native code, where no collector looks.
        self._bridge.listeners.clear()
        registration, self._registration = self._registration, None
        if registration is not None:
            registration.close()

    # The pool's devices

    def get_devdax_arena_statuses(self) -> list[DevDaxArenaStatus]:
        """The devices of the pool.

        Raises:
            L1ReconfigureError: None of them is a DAX device (409), or the server does
                not say what is on them (503).
        """
        return devices.statuses(self._topology, self._native)

    def get_devdax_arena_status(self, device_path: str) -> DevDaxArenaStatus:
        """One device of the pool.

        Raises:
            L1ReconfigureError: None is a DAX device (409), or not this one (404).
        """
        return devices.status(self._topology, self._native, device_path)

    def owns_device(self, device_path: str) -> bool:
        """Whether the pool lies on this device."""
        return devices.owns(self._topology, device_path)

    def memory_region_count(self) -> int:
        """1: all devices lie in one range of addresses (``get_l1_memory_desc``)."""
        return 1

    def add_devdax_device(self, device_path: str, size_in_bytes: int) -> DevDaxArenaStatus:
        """Refused: the pool is the server's, and other instances would not have it.

        Raises:
            L1ReconfigureError: In any case (409).
        """
        raise devices.not_here(f"{device_path} cannot be added")

    def remove_devdax_device(
        self, device_path: str, mode: DevDaxRemoveMode = DevDaxRemoveMode.DRAIN
    ) -> DevDaxArenaStatus:
        """Refused, as adding one is.

        Raises:
            L1ReconfigureError: In any case (409).
        """
        raise devices.not_here(f"{device_path} cannot be removed")

    def shared_file(self) -> tuple[str, int] | None:
        """The pool's name and bytes as a POSIX shared-memory segment, if it is one file
        right under /dev/shm: what workers map to reach pages by their offset."""
        return devices.shared_file(self._topology)

    # Inside

    def _read_objects(
        self, keys: list[ObjectKey], chunks: Chunks
    ) -> dict[ObjectKey, L1OperationResult]:
        return self._results(keys, chunks, self._read_pool, self._layouts.find)

    def _results(
        self,
        keys: Sequence[ObjectKey],
        chunks: Chunks,
        pool: torch.Tensor,
        layout: Callable[[ObjectKey, int], Layout],
    ) -> dict[ObjectKey, L1OperationResult]:
        """What the contract answers: an error and, for a success, a memory object."""
        results: dict[ObjectKey, L1OperationResult] = {}
        for index, (key, code) in enumerate(zip(keys, chunks.codes, strict=True)):
            error = _ERRORS[code]
            if error is L1Error.SUCCESS:
                results[key] = (error, self._object(key, chunks, index, pool, layout))
            else:
                results[key] = (error, None)
        return results

    def _object(
        self,
        key: ObjectKey,
        chunks: Chunks,
        index: int,
        pool: torch.Tensor,
        layout: Callable[[ObjectKey, int], Layout],
    ) -> L1MemoryObj:
        place = chunks.place(index)
        with self._objects_lock:
            found = self._objects.get(place[0])
            if found is None:
                found = L1MemoryObj(
                    chunks, index, pool, place, partial(layout, key, place[2]), self._l1_manager_id
                )
                self._objects[place[0]] = found
        return found


def _locks(read_locks: int, extra_count: int) -> int:
    """How many read locks are meant; what is out of range the native module mends."""
    return min(max(read_locks + extra_count, 0), 1 << 16)


def _errors(keys: Sequence[ObjectKey], codes: bytes) -> dict[ObjectKey, L1Error]:
    return {key: _ERRORS[code] for key, code in zip(keys, codes, strict=True)}
