"""What a handler is told."""

from dataclasses import dataclass

MIB = 1 << 20
# The most bytes of one page: a region of a server has at most so many.
CHUNK_BYTES_MAX = 1 << 30


@dataclass
class MaruConfig:
    """What a :class:`maru.MaruHandler` is made from.

    Attributes:
        server_url: The server: ``maru://HOST:PORT``, ``tcp://HOST:PORT``,
            ``unix:///PATH`` or ``/PATH``. ``None`` for the server that this
            user runs on this host.
        instance_id: The instance's name; instances of one name share what
            they may fill. ``None`` for a name made of host and process.
        pool_size: How many bytes of the pool this instance may fill, unless
            ``auto_expand``.
        chunk_size_bytes: Bytes of a page: the most that one key can have.
        auto_connect: Connect when the handler is made.
        timeout_ms: How long a request may take, reconnecting included, in
            milliseconds.
        use_async_rpc: Taken for compatibility: requests of several threads
            always share one connection, and are in flight together.
        max_inflight: The most requests on their way at a time.
        eager_map: Bring the pool's mapping in behind the connecting handler,
            rather than page by page.
        auto_expand: Fill more than ``pool_size`` wherever the pool has room.
        expand_size: Taken for compatibility: the pool is the server's, and
            is not taken in pieces.
        rm_address: Taken for compatibility: there is no resource manager
            beside the server.
        enable_stats: Count and time the handler's calls
            (:meth:`maru.MaruHandler.get_stats`).

    Raises:
        ValueError: A size or a time makes no sense.
    """

    server_url: str | None = None
    instance_id: str | None = None
    pool_size: int = 100 * MIB
    chunk_size_bytes: int = MIB
    auto_connect: bool = True
    timeout_ms: int = 2000
    use_async_rpc: bool = True
    max_inflight: int = 64
    eager_map: bool = True
    auto_expand: bool = True
    expand_size: int | None = None
    rm_address: str | None = None
    enable_stats: bool = False

    def __post_init__(self) -> None:
        if self.chunk_size_bytes < 1 or self.chunk_size_bytes > CHUNK_BYTES_MAX:
            raise ValueError(
                f"chunk_size_bytes={self.chunk_size_bytes}: a page has 1 to {CHUNK_BYTES_MAX} bytes"
            )
        if self.pool_size < self.chunk_size_bytes:
            raise ValueError(
                f"pool_size={self.pool_size}: less than one chunk of "
                f"{self.chunk_size_bytes} bytes (chunk_size_bytes)"
            )
        if self.timeout_ms < 1:
            raise ValueError(f"timeout_ms={self.timeout_ms}: at least a millisecond is needed")
        if self.max_inflight < 1:
            raise ValueError(f"max_inflight={self.max_inflight}: at least one request is needed")
        if self.expand_size is not None and self.expand_size < 1:
            raise ValueError(f"expand_size={self.expand_size}: give a positive number, or None")
