"""LMCache's memory allocator over a handler's pages."""

import threading

import torch
from lmcache.utils import get_size_bytes
from lmcache.v1.memory_management import (
    MemoryAllocatorInterface,
    MemoryFormat,
    MemoryObj,
)

from maru import AllocHandle, MaruHandler
from maru._native import PinnedPage
from maru_lmcache.layouts import Layout
from maru_lmcache.objects import PageMemoryObj
from maru_lmcache.tensors import bytes_tensor

# An address is a region and the place of a page in it.
_INDEX_BITS = 32


class _WrittenObj(PageMemoryObj):
    """A chunk that is being written; valid until it is stored or freed."""

    def __init__(
        self, handle: AllocHandle, layout: Layout, fmt: MemoryFormat, parent: "CxlMemoryAdapter"
    ) -> None:
        self.handle = handle
        address = parent.encode_address(handle.region_id, handle.page_index)
        super().__init__(lambda: layout, address, handle.size, fmt, parent=parent)

    def _is_held(self) -> bool:
        return self.handle.page.is_open()

    def let_go(self) -> bool:
        """Gives the page back, unless it was stored. ``False`` if that was done before."""
        is_first, self._valid = self._valid, False
        self.handle.page.abort()
        return is_first

    def _map(self) -> torch.Tensor:
        return bytes_tensor(self.handle.buf)


class _ReadObj(PageMemoryObj):
    """A chunk that is read in place; pinned until it is freed."""

    def __init__(
        self,
        page: PinnedPage,
        page_index: int,
        layout: Layout,
        fmt: MemoryFormat,
        parent: "CxlMemoryAdapter",
    ) -> None:
        self._page: PinnedPage | None = page
        address = parent.encode_address(page.region, page_index)
        super().__init__(lambda: layout, address, len(page), fmt, parent=parent)
        # The caller counts its reference itself.
        self.meta.ref_count = 0

    def _is_held(self) -> bool:
        page = self._page
        return page is not None and not page.is_lost()

    def _map(self) -> torch.Tensor:
        assert self._page is not None, "it is valid, so it is held"
        return bytes_tensor(self._page)

    def let_go(self) -> bool:
        """Gives the pin up; a tensor that somebody still has keeps it that long. ``False``
        if that was done before."""
        is_first, self._valid = self._valid, False
        self._raw = None
        self._page = None
        return is_first


class CxlMemoryAdapter(MemoryAllocatorInterface):
    """Memory objects over the pages of a :class:`maru.MaruHandler`.

    Args:
        handler: Where pages come from; connected.
        shapes: The tensors of a full chunk.
        dtypes: Their element types.
        fmt: How a chunk's dimensions are to be read; says which counts tokens.
        chunk_size: Bytes of a full chunk, as the handler has them.

    Raises:
        ValueError: A full chunk has more bytes than ``chunk_size``.
    """

    def __init__(
        self,
        handler: MaruHandler,
        shapes: list[torch.Size],
        dtypes: list[torch.dtype],
        fmt: MemoryFormat,
        chunk_size: int,
    ) -> None:
        self._handler = handler
        self._fmt = fmt
        self._chunk_bytes = chunk_size
        self._full = self._layout(shapes, dtypes)
        if self._full.size_bytes > chunk_size:
            raise ValueError(
                f"a full chunk has {self._full.size_bytes} bytes, the handler's pages {chunk_size}"
            )
        self._lock = threading.Lock()
        self._live = 0

    @staticmethod
    def encode_address(region_id: int, page_index: int) -> int:
        """The address of a page, as memory objects have it in their metadata."""
        return region_id << _INDEX_BITS | page_index

    @staticmethod
    def decode_address(address: int) -> tuple[int, int]:
        """Region and page of an address."""
        return address >> _INDEX_BITS, address & ((1 << _INDEX_BITS) - 1)

    def allocate(
        self,
        shapes: torch.Size | list[torch.Size],
        dtypes: torch.dtype | list[torch.dtype],
        fmt: MemoryFormat = MemoryFormat.UNDEFINED,
        allocator_type: str | None = None,
    ) -> MemoryObj | None:
        """A page to write a chunk into; ``None`` if the pool has none."""
        objects = self.batched_allocate(shapes, dtypes, 1, fmt, allocator_type)
        return None if objects is None else objects[0]

    def batched_allocate(
        self,
        shapes: torch.Size | list[torch.Size],
        dtypes: torch.dtype | list[torch.dtype],
        batch_size: int,
        fmt: MemoryFormat = MemoryFormat.UNDEFINED,
        allocator_type: str | None = None,
    ) -> list[MemoryObj] | None:
        """Pages for ``batch_size`` chunks, or ``None`` if the pool has not so many."""
        layout = self._layout(shapes, dtypes)
        try:
            handles = self._handler.batch_alloc([layout.size_bytes] * batch_size)
        except RuntimeError:
            return None
        with self._lock:
            self._live += len(handles)
        return [_WrittenObj(handle, layout, fmt, self) for handle in handles]

    def free(self, memory_obj: MemoryObj, allocator_type: str | None = None) -> None:
        """Gives a page back: one that was not stored, or one that was read."""
        if not isinstance(memory_obj, (_WrittenObj, _ReadObj)):
            raise ValueError(f"{type(memory_obj).__name__} is none of this allocator's objects")
        # LMCache may free an object twice: when its last reference goes, and its last pin.
        if memory_obj.let_go():
            with self._lock:
                self._live -= 1

    def batched_free(
        self,
        memory_objs: list[MemoryObj],
        allocator_type: str | None = None,
        update_stats: bool = True,
    ) -> None:
        """:meth:`free` for several."""
        for memory_obj in memory_objs:
            self.free(memory_obj)

    def create_store_handle(self, memory_obj: MemoryObj) -> AllocHandle:
        """What :meth:`maru.MaruHandler.store` takes for a chunk that was written.

        Raises:
            ValueError: The object was not allocated here.
        """
        if not isinstance(memory_obj, _WrittenObj):
            raise ValueError("only what was allocated here can be stored")
        return memory_obj.handle

    def get_by_location(
        self, region_id: int, page_index: int, actual_size: int, single_token_size: int
    ) -> MemoryObj | None:
        """A chunk that was retrieved, as a memory object over its page. A shorter last
        chunk has fewer tokens.

        Args:
            region_id: Its region, as ``MemoryInfo`` has it.
            page_index: Its page there.
            actual_size: Bytes of the chunk.
            single_token_size: Bytes of one token.

        Returns:
            The object, without a reference that is counted; ``None`` if nobody
            has the chunk any more: then nothing protects what lies there.
        """
        page = self._handler.page_at(region_id, page_index)
        if page is None or actual_size > len(page):
            return None
        layout = self._shortened(actual_size, single_token_size)
        found = _ReadObj(page, page_index, layout, self._fmt, self)
        with self._lock:
            self._live += 1
        return found

    def memcheck(self) -> bool:
        """Whether the books make sense."""
        with self._lock:
            return self._live >= 0

    def close(self) -> None:
        """Nothing of its own: the handler is its maker's to close."""

    def _layout(
        self,
        shapes: torch.Size | list[torch.Size],
        dtypes: torch.dtype | list[torch.dtype],
    ) -> Layout:
        shapes, dtypes = self._adapt_shapes_and_dtypes(shapes, dtypes)
        return Layout(shapes, dtypes, get_size_bytes(shapes, dtypes))

    def _shortened(self, size: int, token_bytes: int) -> Layout:
        """The layout of a chunk of so many bytes."""
        if size == self._full.size_bytes:
            return self._full
        if token_bytes < 1 or size % token_bytes:
            return Layout.opaque(size)
        tokens, dimension = size // token_bytes, self._fmt.token_dim()
        shapes = []
        for shape in self._full.shapes:
            sizes = list(shape)
            sizes[dimension] = tokens
            shapes.append(torch.Size(sizes))
        return Layout(shapes, self._full.dtypes, size)
