"""What the shared L1 is told."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

GIB = 1 << 30


@dataclass(frozen=True)
class MaruL1Config:
    """The settings of a :class:`maru_lmcache.MaruL1Manager`; as the ``config`` of a
    server module, under the same names.

    Attributes:
        server_url: The server: ``maru://HOST:PORT``, ``tcp://HOST:PORT``,
            ``unix:///PATH`` or ``/PATH``.
        pool_size_gb: How much of the pool this instance may fill, in GB of
            2^30 bytes, unless ``auto_expand``.
        instance_id: The instance's name; instances of one name share what
            they may fill. From host and process if ``None``.
        auto_expand: Fill more than ``pool_size_gb`` wherever there is room.
        timeout_ms: How long a request may take, reconnecting included.
        max_inflight: The most requests on their way at a time.
        eager_map: Bring the mapping of the pool in at the start.
        verify: Which chunks are held against their checksums before they are
            read, once a pin: ``off``, ``sample`` (one in 16) or ``always``.
        host_id: The host's name: the same for instances whose processors
            share a cache-coherent view of the pool, and for no others. The
            kernel's boot id if ``None``.
        visibility_plugin: The library that makes chunks visible to other
            hosts, where the processor's own instructions are not enough.
        shared_memory: Let workers of the engine-driven mode reach the pool's
            pages themselves, if it is one file in /dev/shm. ``None`` for
            wherever that is possible.
        write_ttl_seconds: How long a reservation lives.
        read_ttl_seconds: How long a read lock lives after it was last taken.
        tag: LMCache's name for this L1.

    Raises:
        ValueError: A setting makes no sense.
    """

    server_url: str
    pool_size_gb: float = 100 / 1024
    instance_id: str | None = None
    auto_expand: bool = True
    timeout_ms: int = 2000
    max_inflight: int = 64
    eager_map: bool = True
    verify: str = "sample"
    host_id: str | None = None
    visibility_plugin: str | None = None
    shared_memory: bool | None = None
    write_ttl_seconds: int = 600
    read_ttl_seconds: int = 300
    tag: str = "_default"

    def __post_init__(self) -> None:
        if not re.match(r"((maru|tcp)://[^/]+:\d+|(unix://)?/.)", self.server_url):
            raise ValueError(
                f"server_url={self.server_url!r}: give maru://HOST:PORT, tcp://HOST:PORT, "
                "unix:///PATH or /PATH"
            )
        for name in ("pool_size_gb", "timeout_ms", "max_inflight"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be more than 0")
        for name in ("write_ttl_seconds", "read_ttl_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be more than 0")

    @classmethod
    def from_dict(cls, settings: Mapping[str, object]) -> "MaruL1Config":
        """Takes the settings of a server module.

        Raises:
            ValueError: A setting is unknown, missing, or makes no sense.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ValueError(
                f"unknown settings {', '.join(unknown)}; there are: {', '.join(known)}"
            )
        if "server_url" not in settings:
            raise ValueError("no server_url: say where the Maru server is")
        kinds = get_type_hints(cls)
        for name, value in settings.items():
            if not _fits(value, kinds[name]):
                raise ValueError(f"{name}={value!r}: it is of the wrong type")
        return cls(**settings)  # type: ignore[arg-type]

    @property
    def pool_bytes(self) -> int:
        """``pool_size_gb`` in bytes."""
        return int(self.pool_size_gb * GIB)


def _fits(value: object, kind: Any) -> bool:
    """Whether a value of a JSON object is of a setting's type."""
    kinds = get_args(kind) or (kind,)
    if isinstance(value, bool):
        # Which is an int to Python, and to nobody else.
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
