"""LMCache's memory objects over pages of the pool."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from lmcache.v1.memory_management import (
    MemoryAllocatorInterface,
    MemoryFormat,
    MemoryObjMetadata,
    TensorMemoryObj,
)

from maru._native import Chunk, Chunks
from maru.handler import PAGE_ALIGN
from maru_lmcache.layouts import Layout

_making = threading.RLock()


class PageMemoryObj(TensorMemoryObj):
    """A memory object whose bytes lie in a page, and that is valid for as long as
    the page is the holder's: a late hand finds no tensor, rather than another
    chunk's bytes.

    LMCache asks for objects by the hundred and looks at few: what its class has
    is made when it is first looked at.

    Args:
        layout: Says how the page's bytes are to be seen.
        address: What the object's metadata is to say of its place.
        page_bytes: Bytes of the page.
        fmt: How the chunk's dimensions are to be read.
        owner: The L1 that it belongs to.
        parent: What it is given back to, when nobody refers to it any more.
    """

    def __init__(
        self,
        layout: Callable[[], Layout],
        address: int,
        page_bytes: int,
        fmt: MemoryFormat,
        owner: int | None = None,
        parent: MemoryAllocatorInterface | None = None,
    ) -> None:
        self._valid = True
        self._raw: torch.Tensor | None = None
        self._unmade: tuple[Any, ...] | None = (layout, address, page_bytes, fmt, owner, parent)

    def __getattr__(self, name: str) -> Any:
        """Called for what is not there: LMCache's own fields, at first."""
        with _making:
            unmade = self.__dict__.get("_unmade")
            if unmade is not None:
                self._make(*unmade)
                self._unmade = None
        return object.__getattribute__(self, name)

    def _make(
        self,
        layout: Callable[[], Layout],
        address: int,
        page_bytes: int,
        fmt: MemoryFormat,
        owner: int | None,
        parent: MemoryAllocatorInterface | None,
    ) -> None:
        seen = layout()
        metadata = MemoryObjMetadata(
            seen.shapes[0],
            seen.dtypes[0],
            address,
            page_bytes,
            1,
            0,
            fmt,
            shapes=seen.shapes,
            dtypes=seen.dtypes,
        )
        # Aside, and then all at once: another thread may look at any part of it meanwhile.
        made = TensorMemoryObj(None, metadata, None)
        fields = dict(made.__dict__, parent_allocator=parent, _l1_manager_id=owner)
        del fields["raw_data"], fields["valid"]
        self.__dict__.update(fields)

    def _is_held(self) -> bool:
        """Whether the page is still the holder's."""
        raise NotImplementedError

    def _map(self) -> torch.Tensor:
        """The page's bytes."""
        raise NotImplementedError

    @property
    def valid(self) -> bool:
        return self._valid and self._is_held()

    @valid.setter
    def valid(self, valid: bool) -> None:
        self._valid = valid

    def is_valid(self) -> bool:
        return self.valid

    @property
    def raw_data(self) -> torch.Tensor:
        if not self.valid:
            raise RuntimeError(
                "the memory object is over: its lock was given back or has expired, "
                "or its chunk is not what was stored"
            )
        if self._raw is None:
            self._raw = self._map()
        return self._raw

    @raw_data.setter
    def raw_data(self, _: object) -> None:
        """The base class sets what it is given; here it comes when it is used."""

    def __del__(self) -> None:
        """Nothing is freed through the object."""


class L1MemoryObj(PageMemoryObj):
    """A chunk of an L1 over the pool: staged, or read-locked.

    Args:
        chunks: What the manager answered.
        index: Which of them.
        pool: The bytes of the whole pool, writable for a staged chunk.
        place: The chunk's id, its offset in the pool, its bytes.
        layout: Says how its bytes are to be seen.
        owner: The manager.
    """

    def __init__(
        self,
        chunks: Chunks,
        index: int,
        pool: torch.Tensor,
        place: tuple[int, int, int],
        layout: Callable[[], Layout],
        owner: int,
    ) -> None:
        self._chunks = chunks
        self._index = index
        self._pool = pool
        self._place = place
        self._chunk: Chunk | None = None
        page_bytes = -(-place[2] // PAGE_ALIGN) * PAGE_ALIGN
        super().__init__(layout, place[1], page_bytes, MemoryFormat.UNDEFINED, owner)

    @property
    def offset(self) -> int:
        """Where its bytes lie in the pool."""
        return self._place[1]

    def promote(
        self, chunks: Chunks, index: int, pool: torch.Tensor, place: tuple[int, int, int]
    ) -> None:
        """What was staged is now read-locked, in the same place: so is the object, with
        what LMCache has noted on it."""
        self._chunks, self._index, self._pool, self._place = chunks, index, pool, place
        self._raw = None
        self._chunk = None

    def _is_held(self) -> bool:
        chunk = self._chunk
        if chunk is None:
            chunk = self._chunk = self._chunks.chunk(self._index)
        return chunk.is_open()

    def _map(self) -> torch.Tensor:
        _, offset, size = self._place
        return self._pool[offset : offset + size]
