"""Pages in the hands of a handler's callers."""

from maru._native import PinnedPage, ReservedPage


class AllocHandle:
    """A page to write a chunk into; nobody sees it before it is stored.

    Attributes:
        page: The reservation.
        region_id: The region that the page lies in.
        page_index: Its place there, in units of 4096 bytes.
        size: How many bytes the chunk has.
    """

    __slots__ = ("__weakref__", "_buf", "page", "page_index", "region_id", "size")

    def __init__(self, page: ReservedPage, page_index: int, size: int) -> None:
        self.page = page
        self.region_id = page.region
        self.page_index = page_index
        self.size = size
        self._buf: memoryview | None = None

    @property
    def buf(self) -> memoryview:
        """The chunk's bytes, writable, in the pool itself. What is there at first
        is undefined. Whoever still writes after the chunk is stored changes
        what others read: the view must not be kept."""
        if self._buf is None:
            self._buf = memoryview(self.page)[: self.size]
        return self._buf

    def __repr__(self) -> str:
        return f"AllocHandle({self.region_id}:{self.page_index}, {self.size} bytes)"


class MemoryInfo:
    """A chunk in the pool, read in place.

    It stays where it is as long as this object or any view of it lives. If the
    session with the server is lost meanwhile, that protection ends: what was
    read counts if :meth:`confirm` does not raise afterwards.

    Attributes:
        page: The pinned page.
        region_id: The region that it lies in.
        page_index: Its place there, in units of 4096 bytes.
    """

    __slots__ = ("__weakref__", "_view", "page", "page_index", "region_id")

    def __init__(self, page: PinnedPage, page_index: int) -> None:
        self.page = page
        self.region_id = page.region
        self.page_index = page_index
        self._view: memoryview | None = None

    @property
    def view(self) -> memoryview:
        """The chunk's bytes, read-only, in the pool itself."""
        if self._view is None:
            self._view = memoryview(self.page)
        return self._view

    def confirm(self) -> None:
        """Makes sure that the chunk was protected until now.

        Raises:
            Stale: It was not: what was read may be another chunk's.
        """
        self.page.confirm()

    def __repr__(self) -> str:
        return f"MemoryInfo({self.region_id}:{self.page_index}, {len(self.page)} bytes)"
