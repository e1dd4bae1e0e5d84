"""Chunks of one size in the shared pool, by key."""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from maru._native import (
    Client,
    Committed,
    Damaged,
    Deletion,
    MaruError,
    PinnedPage,
    PoolMemory,
    Presence,
    Refused,
    ReservedPage,
)
from maru.config import MaruConfig
from maru.pages import AllocHandle, MemoryInfo

logger = logging.getLogger(__name__)

# Pages begin at multiples of this, as the server cuts them, and are counted in it: chunks of other
# sizes than the handler's are pages, too.
PAGE_ALIGN = 4096

T = TypeVar("T")


class MaruHandler:
    """One instance's access to the shared pool. Any thread may use it.

    A chunk is written once: storing a key that is there already succeeds, and
    the page is given back. What a server that is away cannot say, a look-up
    takes for a miss; allocating raises ``RuntimeError``.

    Args:
        config: What it is told; the defaults if ``None``.

    Raises:
        MaruError: With ``auto_connect``: the server cannot be reached, or
            refuses.
    """

    def __init__(self, config: MaruConfig | None = None) -> None:
        self.config = config or MaruConfig()
        self._client: Client | None = None
        self._lock = threading.Lock()
        self._pins: dict[str | bytes, list[PinnedPage]] = {}
        # Chunks that were retrieved and are alive, by their place.
        self._retrieved: weakref.WeakValueDictionary[tuple[int, int], PinnedPage] = (
            weakref.WeakValueDictionary()
        )
        self._regions: dict[int, dict[str, int]] = {}
        self._written_regions: set[int] = set()
        self._on_region_added: Callable[[int, int], None] | None = None
        # How often, and for how many seconds in all.
        self._calls: dict[str, tuple[int, float]] = {}
        if self.config.auto_connect:
            self._open()

    # Life

    def connect(self) -> bool:
        """Opens the session; does nothing if there is one.

        Returns:
            Whether there is a session now. Why not is logged.
        """
        try:
            self._open()
        except MaruError as error:
            logger.error("%s", error)
            return False
        return True

    def _open(self) -> None:
        with self._lock:
            if self._client is not None:
                return
            config = self.config
            self._client = Client(
                config.server_url,
                instance=config.instance_id,
                timeout_seconds=config.timeout_ms / 1000,
                budget_bytes=0 if config.auto_expand else config.pool_size,
                in_flight_max=config.max_inflight,
                eager_map=config.eager_map,
            )

    def close(self) -> None:
        """Gives everything back and ends the session. Views stay readable, but
        protect nothing any more. Twice is as good as once."""
        with self._lock:
            client, self._client = self._client, None
            self._pins.clear()
            self._regions.clear()
            self._written_regions.clear()
        if client is not None:
            client.close()

    def __enter__(self) -> "MaruHandler":
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def client(self) -> Client:
        """The session.

        Raises:
            RuntimeError: There is none.
        """
        client = self._client
        if client is None:
            raise RuntimeError("the handler is not connected: call connect() first")
        return client

    # Writing

    def get_chunk_size(self) -> int:
        """The most bytes that a chunk can have."""
        return self.config.chunk_size_bytes

    def alloc(self, size: int) -> AllocHandle:
        """Takes a page for a chunk of ``size`` bytes.

        Raises:
            ValueError: ``size`` is not 1 to :meth:`get_chunk_size`.
            RuntimeError: The pool, or this instance's part of it, is full; or
                the server is not there.
        """
        return self.batch_alloc([size])[0]

    def batch_alloc(self, sizes: Sequence[int]) -> list[AllocHandle]:
        """:meth:`alloc` for several chunks; all get a page, or none does."""
        chunk = self.config.chunk_size_bytes
        for size in sizes:
            if not 1 <= size <= chunk:
                raise ValueError(f"a chunk of {size} bytes: it has 1 to {chunk} (chunk_size_bytes)")
        reserved = self._reserve(len(sizes))
        if not all(isinstance(page, ReservedPage) for page in reserved):
            # What was freed goes back a moment later: now is when it is needed.
            self.client.flush()
            reserved = self._reserve(len(sizes))
        pages = [page for page in reserved if isinstance(page, ReservedPage)]
        if len(pages) < len(sizes):
            over_budget = Refused.OVER_BUDGET in reserved
            raise RuntimeError(
                f"no room for {len(sizes)} chunks of {chunk} bytes: "
                + (
                    "this instance fills its pool_size; give it more, or auto_expand"
                    if over_budget
                    else "all of the pool is pinned or being written; try again, or enlarge it"
                )
            )
        handles = []
        for page, size in zip(pages, sizes, strict=True):
            if size < chunk:
                page.set_length(size)
            handles.append(AllocHandle(page, self._page_index(page), size))
        self._tell_regions(pages)
        return handles

    def _reserve(self, count: int) -> list[ReservedPage | Refused]:
        """Pages without names. Several requests may be needed: then some may have pages
        that others are refused, which give themselves back."""
        chunk = self.config.chunk_size_bytes
        return self._batched(
            range(count), lambda part: self.client.reserve_unnamed(len(part), chunk)
        )

    def free(self, handle: AllocHandle) -> None:
        """Gives a page back that was not stored. One that was is left alone."""
        handle.page.abort()

    def batch_free(self, handles: Sequence[AllocHandle]) -> None:
        """:meth:`free` for several pages."""
        for handle in handles:
            self.free(handle)

    def store(self, key: str | bytes, handle: AllocHandle) -> bool:
        """Makes a written chunk visible to all instances, under ``key``.

        Returns:
            Whether the chunk is in the pool now: this one, or, if somebody was
            first, theirs. The page is not the caller's any more in any case.
        """
        return self.batch_store([key], [handle])[0]

    def batch_store(
        self, keys: Sequence[str | bytes], handles: Sequence[AllocHandle]
    ) -> list[bool]:
        """:meth:`store` for several chunks, in one round trip.

        Raises:
            ValueError: There is not one handle a key, or one was stored or
                freed before.
        """
        if len(keys) != len(handles):
            raise ValueError(f"{len(keys)} keys for {len(handles)} handles: give one each")
        pages = [handle.page for handle in handles]
        if not all(page.is_open() for page in pages):
            raise ValueError("a page was stored or freed before: allocate another")
        stored = (Committed.STORED, Committed.SUPERSEDED)
        pairs = list(zip(keys, pages, strict=True))

        def commit(part: Sequence[tuple[str | bytes, ReservedPage]]) -> list[bool]:
            names, parts = [key for key, _ in part], [page for _, page in part]
            return [one in stored for one in self.client.commit_as(names, parts)]

        return self._told("store", pairs, commit, False)

    # Reading

    def retrieve(self, key: str | bytes) -> MemoryInfo | None:
        """The chunk of ``key``, in place; ``None`` if it is not there, or not what
        was stored."""
        return self.batch_retrieve([key])[0]

    def batch_retrieve(self, keys: Sequence[str | bytes]) -> list[MemoryInfo | None]:
        """:meth:`retrieve` for several chunks, in one round trip."""

        def acquire(part: Sequence[str | bytes]) -> list[MemoryInfo | None]:
            pages = self.client.acquire(part)
            return [self._info(pages[i]) if pages.is_hit(i) else None for i in range(len(pages))]

        return self._told("retrieve", keys, acquire, None)

    def _info(self, page: PinnedPage | None) -> MemoryInfo | None:
        if page is None:
            return None
        try:
            page.verify()
        except Damaged as error:
            logger.warning("%s", error)
            return None
        place = page.region, self._page_index(page)
        with self._lock:
            # One page for all who look at the chunk: it is found as long as one of them does.
            known = self._retrieved.get(place)
            if known is not None and known.generation == page.generation and not known.is_lost():
                page = known
            else:
                self._retrieved[place] = page
        return MemoryInfo(page, place[1])

    def page_at(self, region_id: int, page_index: int) -> PinnedPage | None:
        """The page of a chunk that was retrieved and that somebody still has;
        ``None`` if nobody has: then nothing protects what lies there."""
        return self._retrieved.get((region_id, page_index))

    def get_buffer_view(self, region_id: int, offset: int, size: int) -> memoryview | None:
        """``size`` bytes of a region from ``offset`` on, read-only; ``None`` if there are
        no such. It protects nothing: what lies there may become another chunk's at
        any time, unless it is pinned."""
        region = self._region(region_id)
        if region is None or offset < 0 or size < 0 or offset + size > region["bytes"]:
            return None
        start = region["offset"] + offset
        return memoryview(self.memory())[start : start + size]

    def exists(self, key: str | bytes) -> bool:
        """Whether the chunk is there. Changes nothing, not even how recently it was
        used."""
        return self.batch_exists([key])[0]

    def batch_exists(self, keys: Sequence[str | bytes]) -> list[bool]:
        """:meth:`exists` for several chunks: an answer for all of them."""
        return self._told(
            "exists",
            keys,
            lambda part: [one is Presence.RESIDENT for one in self.client.contains(part)],
            False,
        )

    def pin(self, key: str | bytes) -> bool:
        """Keeps the chunk from being evicted, until :meth:`unpin` was called as
        often. ``False`` if it is not there."""
        return self.batch_pin([key])[0]

    def batch_pin(self, keys: Sequence[str | bytes]) -> list[bool]:
        """:meth:`pin` for the chunks before the first that is not there; the rest
        is ``False``."""
        pinned: list[bool] = []
        while len(pinned) < len(keys):
            part = keys[len(pinned) : len(pinned) + self.client.batch_max]
            try:
                pages = self.client.acquire(part, stop_at_miss=True)
            except MaruError as error:
                logger.warning("pin: %s", error)
                break
            with self._lock:
                for index in range(len(pages)):
                    page = pages[index]
                    if page is not None:
                        self._pins.setdefault(part[index], []).append(page)
            pinned += [True] * len(pages)
            if len(pages) < len(part):
                break
        return pinned + [False] * (len(keys) - len(pinned))

    def unpin(self, key: str | bytes) -> bool:
        """Gives one pin back. ``False`` if this handler holds none on it."""
        return self.batch_unpin([key])[0]

    def batch_unpin(self, keys: Sequence[str | bytes]) -> list[bool]:
        """:meth:`unpin` for several chunks, in one round trip."""
        pages: list[PinnedPage] = []
        unpinned: list[bool] = []
        with self._lock:
            for key in keys:
                held = self._pins.get(key)
                unpinned.append(bool(held))
                if held:
                    pages.append(held.pop())
                    if not held:
                        del self._pins[key]
        self._told("unpin", pages, self._release, None)
        return unpinned

    def _release(self, pages: Sequence[PinnedPage]) -> list[None]:
        self.client.release(pages)
        return [None] * len(pages)

    def delete(self, key: str | bytes) -> bool:
        """Deletes the chunk. ``False`` if it is not there, or if somebody pins it."""
        return self.batch_delete([key])[0]

    def batch_delete(self, keys: Sequence[str | bytes]) -> list[bool]:
        """:meth:`delete` for several chunks, in one round trip."""
        return self._told(
            "delete",
            keys,
            lambda part: [one is Deletion.DELETED for one in self.client.delete(part)],
            False,
        )

    # What there is

    def memory(self, *, writable: bool = False) -> PoolMemory:
        """The whole pool as one buffer. Whoever writes through it must have
        allocated the place."""
        return self.client.memory(writable=writable)

    def get_region_page_count(self, region_id: int) -> int | None:
        """How many pages of 4096 bytes, in which ``page_index`` counts, a region has;
        ``None`` if there is no such region."""
        region = self._region(region_id)
        return None if region is None else region["bytes"] // PAGE_ALIGN

    def get_owned_region_ids(self) -> list[int]:
        """The regions that this handler has written to. No instance owns one: what
        it wrote stays when it goes."""
        with self._lock:
            return sorted(self._written_regions)

    def set_on_region_added(self, callback: Callable[[int, int], None] | None) -> None:
        """Calls ``callback(region_id, page_count)`` whenever the handler first writes
        to a region, and now for those it has written to."""
        self._on_region_added = callback
        if callback is not None:
            for region_id in self.get_owned_region_ids():
                callback(region_id, self.get_region_page_count(region_id) or 0)

    def get_stats(self) -> dict[str, Any]:
        """Numbers of the whole pool, as ``maru stat --json`` has them; and with
        ``enable_stats``, under ``handler``, how often and for how many seconds
        this handler asked what."""
        stats: dict[str, Any] = dict(self.client.stats())
        if self.config.enable_stats:
            with self._lock:
                stats["handler"] = {
                    call: {"calls": calls, "seconds": seconds}
                    for call, (calls, seconds) in self._calls.items()
                }
        return stats

    # Inside

    def _region(self, region_id: int) -> dict[str, int] | None:
        if region_id not in self._regions:
            regions = {region["region"]: region for region in self.client.regions()}
            with self._lock:
                self._regions.update(regions)
        return self._regions.get(region_id)

    def _page_index(self, page: PinnedPage | ReservedPage) -> int:
        region = self._region(page.region)
        start = 0 if region is None else region["offset"]
        return (page.offset - start) // PAGE_ALIGN

    def _tell_regions(self, pages: Sequence[ReservedPage]) -> None:
        with self._lock:
            new = {page.region for page in pages} - self._written_regions
            self._written_regions |= new
        if self._on_region_added is not None:
            for region_id in sorted(new):
                self._on_region_added(region_id, self.get_region_page_count(region_id) or 0)

    def _batched(self, items: Sequence[Any], ask: Callable[[Sequence[Any]], list[T]]) -> list[T]:
        """Asks about any number of items, as many at a time as the server takes."""
        most = self.client.batch_max
        answers: list[T] = []
        for start in range(0, len(items), most):
            answers += ask(items[start : start + most])
        return answers

    def _told(
        self,
        call: str,
        items: Sequence[Any],
        ask: Callable[[Sequence[Any]], list[T]],
        otherwise: T,
    ) -> list[T]:
        """The same; ``otherwise`` for all of them if the server does not say."""
        start = time.perf_counter()
        try:
            return self._batched(items, ask)
        except MaruError as error:
            logger.warning("%s: %s", call, error)
            return [otherwise] * len(items)
        finally:
            if self.config.enable_stats:
                with self._lock:
                    calls, seconds = self._calls.get(call, (0, 0.0))
                    self._calls[call] = (calls + 1, seconds + time.perf_counter() - start)
