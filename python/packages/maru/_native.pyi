"""The native module: sessions, pages, and the L1 managers.

Nothing waits or copies while it holds the GIL. ``MaruError`` is raised where
the server, or the memory, does not do as asked; ``ValueError`` where what was
asked cannot be.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, final

from _typeshed import StrPath
from typing_extensions import Buffer

__all__ = [
    "Chunk",
    "Chunks",
    "Client",
    "Committed",
    "Damaged",
    "Deletion",
    "L1Manager",
    "MaruError",
    "PinnedPage",
    "PinnedPages",
    "PoolMemory",
    "Presence",
    "Refused",
    "ReservedPage",
    "Stale",
    "Unreachable",
    "__version__",
]

__version__: str

class MaruError(RuntimeError):
    """What the pool could not do, and why."""

class Unreachable(MaruError):
    """The server is not there, or is silent."""

class Stale(MaruError):
    """What was read may be another chunk's: discard it."""

class Damaged(MaruError):
    """What was read is not what was stored."""

@final
class Refused:
    """Why a key was not reserved."""

    RESIDENT: ClassVar[Refused]
    BEING_WRITTEN: ClassVar[Refused]
    ALREADY_RESERVED: ClassVar[Refused]
    OUT_OF_MEMORY: ClassVar[Refused]
    OVER_BUDGET: ClassVar[Refused]
    def __hash__(self) -> int: ...
    def __int__(self) -> int: ...

@final
class Committed:
    """What came of committing a page."""

    STORED: ClassVar[Committed]
    SUPERSEDED: ClassVar[Committed]
    NOT_RESERVED: ClassVar[Committed]
    UNWRITABLE: ClassVar[Committed]
    def __hash__(self) -> int: ...
    def __int__(self) -> int: ...

@final
class Presence:
    """What is known of a key."""

    RESIDENT: ClassVar[Presence]
    RESERVED: ClassVar[Presence]
    MISSING: ClassVar[Presence]
    def __hash__(self) -> int: ...
    def __int__(self) -> int: ...

@final
class Deletion:
    """What came of deleting a key."""

    DELETED: ClassVar[Deletion]
    PINNED: ClassVar[Deletion]
    RESERVED: ClassVar[Deletion]
    MISSING: ClassVar[Deletion]
    def __hash__(self) -> int: ...
    def __int__(self) -> int: ...

@final
class PinnedPage(Buffer):
    """A chunk in the pool, pinned: read-only through the buffer protocol.

    It stays where it is as long as this object or any view of it lives, and
    the session does; :meth:`confirm` says whether it did.
    """

    @property
    def region(self) -> int: ...
    @property
    def offset(self) -> int:
        """Where it begins in the pool's address range, in bytes."""
    @property
    def generation(self) -> int: ...
    @property
    def address(self) -> int:
        """Its address in this process."""
    def __len__(self) -> int:
        """Bytes of the chunk."""
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...
    def is_lost(self) -> bool:
        """Whether it is known already that it is protected no more."""
    def confirm(self) -> None:
        """Raises ``Stale`` unless it was protected until now."""
    def verify(self) -> None:
        """Holds it against its checksum, if that is its turn, and confirms.
        Raises ``Damaged`` or ``Stale``."""
    def copy_to(self, buffer: Buffer) -> None:
        """Copies it into a buffer of the same length, verifies and confirms."""
    def release(self) -> None:
        """Gives the pin back, now. ``BufferError`` while a view of it lives."""

@final
class PinnedPages:
    """What an ``acquire`` found, by key: ``None`` for a miss. Pages are made
    when they are asked for."""

    @property
    def hits(self) -> int: ...
    def is_hit(self, index: int) -> bool: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> PinnedPage | None: ...

@final
class ReservedPage(Buffer):
    """A page to write a chunk into, through the buffer protocol.

    Nobody sees it before it is committed. Dropping it gives it back. Views
    keep the memory mapped, not the right to write: after the commit they must
    not be used.
    """

    @property
    def region(self) -> int: ...
    @property
    def offset(self) -> int:
        """Where it begins in the pool's address range, in bytes."""
    @property
    def generation(self) -> int: ...
    @property
    def address(self) -> int:
        """Its address in this process."""
    def __len__(self) -> int:
        """Bytes of the page that were asked for."""
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...
    def is_open(self) -> bool:
        """Whether it was neither committed nor given back."""
    def set_length(self, length: int) -> None:
        """Says how many bytes the chunk has, if it is shorter than the page."""
    def copy_from(self, buffer: Buffer) -> None:
        """Copies the whole page in, around the caches if it is large."""
    def abort(self) -> None:
        """Gives it back, unseen."""

@final
class PoolMemory(Buffer):
    """The whole pool as one buffer; it stays mapped as long as this or a view of
    it lives."""

    def __len__(self) -> int: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Client:
    """One session with a server; any thread may use it.

    Args:
        server: ``maru://HOST:PORT``, ``tcp://HOST:PORT``, ``unix:///PATH`` or
            ``/PATH``; ``None`` for this user's server on this host.
        instance: The instance's name; from host and process if ``None``.
        host: The host's name, equal for those whose processors share a
            cache-coherent view of the pool; the kernel's boot id if ``None``.
        timeout_seconds: How long a request may take, reconnecting included.
        budget_bytes: How much of the pool the instance may fill; 0 for all.
        device_paths: Where to look for the pool's devices, if not where the
            server has them.
        in_flight_max: The most requests on their way at a time.
        eager_map: Bring the pool's mapping in behind the constructor.
        visibility_plugin: The library that makes pages visible to other hosts.
        verify: Which chunks are held against their checksums: ``off``,
            ``sample`` (one in 16) or ``always``.
        outside_writers: Other processes write into pages that this reserves:
            its death is not theirs.
    """

    def __new__(
        cls,
        server: str | None = None,
        *,
        instance: str | None = None,
        host: str | None = None,
        timeout_seconds: float = 5.0,
        budget_bytes: int = 0,
        device_paths: Sequence[StrPath] = ...,
        in_flight_max: int = 64,
        eager_map: bool = False,
        visibility_plugin: StrPath | None = None,
        verify: str = "sample",
        outside_writers: bool = False,
    ) -> Client: ...
    @property
    def instance(self) -> str: ...
    @property
    def batch_max(self) -> int:
        """The most keys or pages of one request."""
    def reserve(
        self,
        keys: Sequence[str | bytes],
        page_bytes: int,
        *,
        tag: int = 0,
        unless_being_written: bool = False,
    ) -> list[ReservedPage | Refused]:
        """Pages for new chunks, or why there is none; memory for all, or none."""
    def reserve_unnamed(self, count: int, page_bytes: int) -> list[ReservedPage | Refused]:
        """Pages for chunks that get their names with :meth:`commit_as`."""
    def commit(self, pages: Sequence[ReservedPage]) -> list[Committed]:
        """Makes written pages visible to all instances."""
    def commit_as(
        self, keys: Sequence[str | bytes], pages: Sequence[ReservedPage]
    ) -> list[Committed]:
        """The same under these keys, whatever the pages were reserved for."""
    def acquire(self, keys: Sequence[str | bytes], *, stop_at_miss: bool = False) -> PinnedPages:
        """Looks up and pins, in one round trip."""
    def release(self, pages: Iterable[PinnedPage] | PinnedPages) -> None:
        """Gives pins back, in one round trip. Raises ``Stale`` if one of them was
        not protected until now."""
    def contains(self, keys: Sequence[str | bytes]) -> list[Presence]:
        """Which chunks are there; changes nothing."""
    def touch(self, keys: Sequence[str | bytes]) -> list[Presence]:
        """Counts chunks as used, without reading them."""
    def delete(self, keys: Sequence[str | bytes]) -> list[Deletion]:
        """Forgets chunks that nobody pins."""
    def stats(self) -> dict[str, Any]:
        """Numbers of the whole pool."""
    def regions(self) -> list[dict[str, int]]:
        """The pool's regions: place, page size, pages by state."""
    def topology(self) -> dict[str, Any]:
        """The pool's devices, and where they lie in its address range."""
    def memory(self, *, writable: bool = False) -> PoolMemory:
        """The whole pool as one buffer."""
    def confirm(self) -> None:
        """Raises unless what is held was held all the time until now."""
    def flush(self) -> None:
        """Gives back what was dropped, now rather than a moment later."""
    def close(self) -> None:
        """Ends the session. Twice is as good as once."""

@final
class Chunk:
    """One chunk of an L1: staged, or read-locked."""

    @property
    def is_writable(self) -> bool: ...
    def __len__(self) -> int: ...
    def is_open(self) -> bool:
        """Whether it can still be written to; or was, and is, the chunk that was
        read-locked, and passes for what was stored."""
    def copy_to(self, buffer: Buffer) -> bool:
        """Copies it out. ``False`` if it was not protected all the time."""
    def copy_from(self, buffer: Buffer) -> bool:
        """Copies all of it in. ``False`` if it is not this writer's any more."""

@final
class Chunks:
    """What an L1 answered to a batch, by key."""

    @property
    def codes(self) -> bytes:
        """LMCache's ``L1Error`` for each key, by its number: 1 is success."""
    def __len__(self) -> int: ...
    def place(self, index: int) -> tuple[int, int, int]:
        """Of a success: its id, equal for objects of one chunk that are there at the
        same time; its offset in the L1's buffer; its bytes."""
    def chunk(self, index: int) -> Chunk:
        """Of a success: the chunk."""

@final
class L1Manager:
    """An L1 cache, as LMCache's ``L1ManagerInterface`` asks; keys are LMCache's
    ``ObjectKey`` or their key strings, and errors are ``L1Error`` by number."""

    @staticmethod
    def local(
        bytes: int,
        *,
        initial_bytes: int | None = None,
        align_bytes: int = 4096,
        huge_pages: bool = False,
        write_ttl_seconds: float = 600.0,
        read_ttl_seconds: float = 300.0,
    ) -> L1Manager:
        """A private L1 in DRAM. It has no evictor of its own here."""
    @staticmethod
    def maru(
        server: str,
        *,
        pool_bytes: int = 104_857_600,
        instance: str | None = None,
        timeout_seconds: float = 2.0,
        in_flight_max: int = 64,
        eager_map: bool = True,
        auto_expand: bool = True,
        verify: str = "sample",
        host: str | None = None,
        visibility_plugin: StrPath | None = None,
        outside_writers: bool = False,
        write_ttl_seconds: float = 600.0,
        read_ttl_seconds: float = 300.0,
    ) -> L1Manager:
        """The L1 over the pool of this server."""
    def register_listener(self, listener: Any) -> None:
        """Tells an object's ``on_l1_keys_*`` methods what happens, with lists of key
        strings; and ``on_l1_deletions_missed()`` when others' may have gone
        untold."""
    def register_kv_layout(self, chunk_bytes: int, tokens_per_chunk: int) -> int:
        """Bytes of a token. ``ValueError`` if such chunks are not of whole tokens, or
        cannot be stored in the pool."""
    def reserve_read(self, keys: Sequence[Any], read_locks: int = 1) -> Chunks: ...
    def unsafe_read(self, keys: Sequence[Any]) -> Chunks: ...
    def finish_read(self, keys: Sequence[Any], read_locks: int = 1) -> bytes: ...
    def reserve_write(
        self, keys: Sequence[Any], temporary: Sequence[bool], chunk_bytes: int, tag: str = ""
    ) -> Chunks: ...
    def finish_write(self, keys: Sequence[Any], tag: str = "") -> bytes: ...
    def finish_write_and_reserve_read(
        self, keys: Sequence[Any], read_locks: int = 1, tag: str = ""
    ) -> Chunks: ...
    def finish_write_and_delete(self, keys: Sequence[Any], tag: str = "") -> bytes: ...
    def delete(self, keys: Sequence[Any], force: bool = False) -> bytes: ...
    def clear(self, force: bool = False) -> None: ...
    def touch_keys(self, keys: Sequence[Any]) -> None: ...
    def is_key_evictable(self, key: Any) -> bool: ...
    def memory_usage(self) -> tuple[int, int]:
        """Bytes used, and bytes there are."""
    def staging_memory_usage(self) -> int: ...
    def capacity_bytes_by_backend(self) -> dict[str, int]: ...
    def memory_desc(self) -> tuple[int, int, int, int | None] | None:
        """Address, bytes, alignment, and how many bytes are there to stay."""
    def object_state(self, key: Any) -> tuple[int, bool] | None:
        """Read locks of this manager, and whether the chunk is temporary."""
    def report_status(self) -> dict[str, Any]: ...
    def memcheck(self) -> bool: ...
    def close(self) -> None: ...
    def memory(self, *, writable: bool = False) -> PoolMemory:
        """The whole pool as one buffer. ``ValueError`` for a private L1."""
    def topology(self) -> dict[str, Any]:
        """The pool's devices. ``ValueError`` for a private L1."""
    def regions(self) -> list[dict[str, int]]:
        """The pool's regions. ``ValueError`` for a private L1."""
