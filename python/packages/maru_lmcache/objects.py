"""LMCache's memory objects over pages of the pool."""

from typing import Any

import torch
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

from maru._native import Chunk, Chunks
from maru_lmcache.layouts import Layout


class PageMemoryObj(TensorMemoryObj):
    """A memory object whose bytes lie in a page, and that is valid for as long as
    the page is the holder's: a late hand finds no tensor, rather than another
    chunk's bytes.
    """

    # Its allocator, if it has one, counts it among what is alive.
    is_counted = False

    def __init__(self, layout: Layout, address: int, page_bytes: int, fmt: MemoryFormat) -> None:
        self._valid = True
        self._raw: torch.Tensor | None = None
        metadata = MemoryObjMetadata(
            layout.shapes[0],
            layout.dtypes[0],
            address,
            page_bytes,
            1,
            0,
            fmt,
            shapes=layout.shapes,
            dtypes=layout.dtypes,
        )
        super().__init__(None, metadata, None)  # type: ignore[arg-type]

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

    @property  # type: ignore[override]
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
    def raw_data(self, _: Any) -> None:
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
        layout: How its bytes are to be seen.
    """

    def __init__(
        self,
        chunks: Chunks,
        index: int,
        pool: torch.Tensor,
        place: tuple[int, int, int],
        layout: Layout,
    ) -> None:
        self._chunks = chunks
        self._index = index
        self._pool = pool
        self._chunk: Chunk | None = None
        self.chunk_id, offset, size = place
        super().__init__(layout, offset, size, MemoryFormat.UNDEFINED)

    def chunk(self) -> Chunk:
        """The chunk; it is made when it is first used."""
        if self._chunk is None:
            self._chunk = self._chunks.chunk(self._index)
        return self._chunk

    def _is_held(self) -> bool:
        return self.chunk().is_open()

    def _map(self) -> torch.Tensor:
        return self._pool[self.meta.address : self.meta.address + self.meta.phy_size]
