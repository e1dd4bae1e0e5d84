"""How the bytes of chunks are to be seen as tensors."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lmcache.utils import get_size_bytes
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey

LayoutSource = Callable[[ObjectKey], MemoryLayoutDesc | None]


@dataclass(frozen=True)
class Layout:
    """The tensors of one chunk, one behind the other.

    Attributes:
        shapes: Their shapes.
        dtypes: Their element types.
        size_bytes: Bytes of all of them.
    """

    shapes: list[torch.Size]
    dtypes: list[torch.dtype]
    size_bytes: int

    @classmethod
    def of(cls, desc: MemoryLayoutDesc) -> "Layout":
        return cls(desc.shapes, desc.dtypes, get_size_bytes(desc.shapes, desc.dtypes))

    @classmethod
    def opaque(cls, size_bytes: int) -> "Layout":
        return cls([torch.Size([size_bytes])], [torch.uint8], size_bytes)


def world_size(key: ObjectKey) -> int:
    """How many shards the chunk's KV is cut into, as the key's rank says."""
    return (key.kv_rank >> 24) & 0xFF


def _place(key: ObjectKey) -> tuple[str, int, int]:
    return key.model_name, world_size(key), key.object_group_id


class Layouts:
    """The layouts that are known. The pool keeps bytes; what another instance
    wrote is seen as what is written here under such keys, or as the workers of
    this server registered it.

    Args:
        source: Says what workers registered.
    """

    def __init__(self, source: LayoutSource | None = None) -> None:
        self._source = source
        self._lock = threading.Lock()
        # By model, kv rank's world size, object group, and bytes.
        self._known: dict[tuple[str, int, int, int], Layout] = {}
        # By bytes alone: what was registered without saying for which keys.
        self._by_bytes: dict[int, Layout] = {}
        self._last: dict[tuple[str, int, int], int] = {}

    def learn(
        self, desc: MemoryLayoutDesc, stay: list[ObjectKey], passing: list[ObjectKey]
    ) -> Layout:
        """Chunks are written so: some that stay, and temporary ones. What passes may be
        anything that LMCache makes of a chunk, so it teaches only where nothing is known."""
        layout = Layout.of(desc)
        with self._lock:
            for place in {_place(key) for key in stay}:
                self._known[(*place, layout.size_bytes)] = layout
                self._last[place] = layout.size_bytes
            for place in {_place(key) for key in passing}:
                self._known.setdefault((*place, layout.size_bytes), layout)
        return layout

    def register(self, desc: MemoryLayoutDesc) -> Layout:
        """Chunks of so many bytes are to be seen so, unless more is known."""
        layout = Layout.of(desc)
        with self._lock:
            self._by_bytes[layout.size_bytes] = layout
        return layout

    def find(self, key: ObjectKey, size_bytes: int) -> Layout:
        """The layout of a chunk; flat bytes if none of that size is known."""
        layout = self._known.get((*_place(key), size_bytes))
        if layout is not None:
            return layout
        desc = self._source(key) if self._source is not None else None
        if desc is not None and get_size_bytes(desc.shapes, desc.dtypes) == size_bytes:
            return self.learn(desc, [key], [])
        return self._by_bytes.get(size_bytes) or Layout.opaque(size_bytes)

    def size_of(self, key: ObjectKey) -> int:
        """Bytes of such a chunk as it was last seen here; 0 if never."""
        return self._last.get(_place(key), 0)
