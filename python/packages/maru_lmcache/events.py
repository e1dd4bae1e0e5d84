"""What happens in the L1, told to LMCache's listeners and on its event bus."""

import functools
import logging
from collections.abc import Callable

from lmcache.v1.distributed.api import L1BackendType, ObjectKey
from lmcache.v1.distributed.internal_api import L1ManagerListener, L1ObjectMeta
from lmcache.v1.mp_observability.event import Event, EventType
from lmcache.v1.mp_observability.event_bus import EventBus

from maru_lmcache.layouts import Layouts

logger = logging.getLogger(__name__)


@functools.lru_cache(maxsize=1 << 16)
def object_key(text: str) -> ObjectKey:
    """The key of a key string, ``<model>@<kv rank>@<hash>@<object group>[@<salt>]``."""
    model, rank, chunk_hash, group, *salt = text.split("@")
    return ObjectKey(
        chunk_hash=bytes.fromhex(chunk_hash),
        model_name=model,
        kv_rank=int(rank, 16),
        object_group_id=int(group),
        cache_salt=salt[0] if salt else "",
    )


class Bridge:
    """Listens to the native manager, which tells it one thing at a time, in order
    and outside of its locks.

    Args:
        tag: LMCache's name for the L1.
        event_bus: Where events go.
        layouts: Knows how large chunks are.
        backend: The kind of memory that events name.
    """

    def __init__(
        self, tag: str, event_bus: EventBus, layouts: Layouts, backend: L1BackendType
    ) -> None:
        self.listeners: list[L1ManagerListener] = []
        self._tag = tag
        self._event_bus = event_bus
        self._layouts = layouts
        self._backend = backend

    def on_l1_keys_reserved_read(self, texts: list[str]) -> None:
        keys = [object_key(text) for text in texts]
        self._tell(lambda listener: listener.on_l1_keys_reserved_read(keys))
        self._publish(EventType.L1_READ_RESERVED, keys)

    def on_l1_keys_read_finished(self, texts: list[str]) -> None:
        keys = [object_key(text) for text in texts]
        self._tell(lambda listener: listener.on_l1_keys_read_finished(keys))
        self._publish(EventType.L1_READ_FINISHED, keys)

    def on_l1_keys_reserved_write(self, texts: list[str]) -> None:
        # The event is published by the call, which knows the writer's tag.
        keys = [object_key(text) for text in texts]
        self._tell(lambda listener: listener.on_l1_keys_reserved_write(keys))

    def on_l1_keys_write_finished(self, texts: list[str]) -> None:
        keys = [object_key(text) for text in texts]
        self._tell(lambda listener: listener.on_l1_keys_write_finished(keys))
        self._publish(EventType.L1_WRITE_FINISHED, keys, with_meta=True)

    def on_l1_keys_finish_write_and_reserve_read(self, texts: list[str]) -> None:
        keys = [object_key(text) for text in texts]
        self._tell(lambda listener: listener.on_l1_keys_finish_write_and_reserve_read(keys))
        self._publish(EventType.L1_WRITE_FINISHED_AND_READ_RESERVED, keys, with_meta=True)

    def on_l1_keys_deleted_by_manager(self, texts: list[str]) -> None:
        keys = [object_key(text) for text in texts]
        self._tell(lambda listener: listener.on_l1_keys_deleted_by_manager(keys))
        self._publish(EventType.L1_KEYS_EVICTED, keys, with_meta=True)

    def on_l1_keys_accessed(self, texts: list[str]) -> None:
        """Told by :meth:`accessed`, which has the keys already."""

    def on_l1_deletions_missed(self) -> None:
        logger.debug("some chunks may have left the pool untold")

    def accessed(self, keys: list[ObjectKey]) -> None:
        """Keys were used. Comes at any time, unlike the others."""
        if not keys:
            return
        self._tell(lambda listener: listener.on_l1_keys_accessed(keys))
        if self._event_bus.has_subscribers(EventType.L1_KEYS_ACCESSED):
            self._publish(EventType.L1_KEYS_ACCESSED, keys)

    def _tell(self, tell: Callable[[L1ManagerListener], object]) -> None:
        for listener in self.listeners:
            try:
                tell(listener)
            except Exception:
                # The others are to hear of it all the same.
                logger.exception("a listener of the L1 failed")

    def _publish(
        self, event_type: EventType, keys: list[ObjectKey], with_meta: bool = False
    ) -> None:
        metadata: dict[str, object] = {"l1_tag": self._tag, "keys": keys}
        if with_meta:
            metadata["meta"] = [
                L1ObjectMeta(size_bytes=self._layouts.size_of(key), backend=self._backend)
                for key in keys
            ]
        self._event_bus.publish(Event(event_type=event_type, metadata=metadata))
