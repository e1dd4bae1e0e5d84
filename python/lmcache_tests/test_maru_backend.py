"""LMCache's in-process Maru connector, unchanged, on the `maru` package."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.pin_monitor import PinMonitor
from lmcache.v1.storage_backend.maru_backend import MaruBackend
from processes import PATIENCE_S, Server, eventually

from maru import Client, MaruConfig, MaruHandler

CHUNK_TOKENS = 256
# (layers, 2, tokens, heads, head size), as LMCache's metadata has it.
KV_SHAPE = (2, 2, CHUNK_TOKENS, 2, 64)


def key(chunk_hash: int) -> CacheEngineKey:
    return CacheEngineKey("test/model", 1, 0, chunk_hash, torch.float16)


class Backends:
    """Makes backends, each an instance of its own."""

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self._url = url
        self._loop = loop
        self.made: list[MaruBackend] = []

    def make(self) -> MaruBackend:
        config = LMCacheEngineConfig.from_defaults(chunk_size=CHUNK_TOKENS)
        config.maru_path = self._url
        config.maru_pool_size = 0.03
        PinMonitor.GetOrCreate(config)
        metadata = LMCacheMetadata(
            model_name="test/model",
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=torch.float16,
            kv_shape=KV_SHAPE,
            chunk_size=CHUNK_TOKENS,
        )
        backend = MaruBackend(config, metadata, self._loop, dst_device="cpu")
        self.made.append(backend)
        return backend


@pytest.fixture
def server() -> Iterator[Server]:
    """Over TCP too: the connector's URLs have a host and a port."""
    from lmcache_server import free_port

    port = free_port()
    server = Server(64 << 20, ("--listen", f"127.0.0.1:{port}"))
    server.url = f"maru://127.0.0.1:{port}"
    yield server
    server.stop()


@pytest.fixture
def backends(server: Server) -> Iterator[Backends]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    backends = Backends(server.url, loop)
    yield backends
    for backend in backends.made:
        backend.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE_S)
    loop.close()
    PinMonitor._instance = None


def put(backend: MaruBackend, chunk_hash: int, value: float) -> None:
    shapes, dtypes = backend.memory_allocator._full.shapes, backend.memory_allocator._full.dtypes
    written = backend.allocate(shapes, dtypes)
    assert written is not None
    assert written.tensor is not None
    written.tensor.fill_(value)
    backend.submit_put_task(key(chunk_hash), written).result(PATIENCE_S)
    written.ref_count_down()


def value_of(found) -> float:  # type: ignore[no-untyped-def]
    assert found is not None
    assert found.tensor is not None
    first = float(found.tensor.flatten()[0])
    assert bool((found.tensor == first).all())
    return first


def test_put_and_get(backends: Backends, server: Server) -> None:
    writer, reader = backends.make(), backends.make()
    put(writer, 1, 7)
    assert reader.contains(key(1))
    assert not reader.contains(key(2))
    found = reader.get_blocking(key(1))
    assert value_of(found) == 7
    assert found.get_num_tokens() == CHUNK_TOKENS
    assert reader.get_blocking(key(2)) is None
    client = Client(server.url)
    assert client.stats()["pins"] == 1
    found.ref_count_down()
    eventually(lambda: client.stats()["pins"] == 0, "what was read is given back")
    assert found.tensor is None, "a late hand finds no tensor"
    client.close()


def test_a_chunk_is_written_once(backends: Backends, server: Server) -> None:
    writer, other = backends.make(), backends.make()
    put(writer, 1, 7)
    # It succeeds; the first stays, and the second's page is given back.
    put(other, 1, 9)
    assert value_of(other.get_blocking(key(1))) == 7
    client = Client(server.url)
    stats = client.stats()
    assert (stats["pages_resident"], stats["pages_reserved"]) == (1, 0)
    client.close()


def test_batches(backends: Backends) -> None:
    writer, reader = backends.make(), backends.make()
    full = writer.memory_allocator._full
    written = writer.batched_allocate(full.shapes, full.dtypes, 5)
    assert written is not None
    for value, one in enumerate(written):
        one.tensor.fill_(value)
    keys = [key(value) for value in range(5)]
    done: list[CacheEngineKey] = []
    futures = writer.batched_submit_put_task(keys, written, on_complete_callback=done.append)
    assert futures is not None
    for future in futures:
        future.result(PATIENCE_S)
    assert done == keys
    found = reader.batched_get_blocking([*keys, key(99)])
    assert [value_of(one) for one in found[:5]] == [0, 1, 2, 3, 4]
    assert found[5] is None
    assert reader.batched_contains([*keys[:3], key(99), *keys[3:]]) == 3
    prefix = asyncio.run_coroutine_threadsafe(
        reader.batched_get_non_blocking("lookup", [*keys[:2], key(99), keys[2]]), reader.loop
    ).result(PATIENCE_S)
    assert [value_of(one) for one in prefix] == [0, 1]
    for one in prefix:
        one.ref_count_down()
        one.unpin()
    for one in found[:5]:
        one.ref_count_down()


def test_pins_protect(backends: Backends, server: Server) -> None:
    writer, reader = backends.make(), backends.make()
    for value in range(3):
        put(writer, value, value)
    assert reader.contains(key(0), pin=True)
    assert reader.batched_contains([key(0), key(1), key(9), key(2)], pin=True) == 2
    assert not reader.pin(key(9))
    assert not reader.unpin(key(9))
    assert not writer.remove(key(0))
    assert not writer.remove(key(1))
    assert writer.remove(key(2))
    assert not writer.remove(key(2))
    reader.batched_unpin([key(0), key(1)])
    assert writer.remove(key(1))
    assert not writer.remove(key(0))
    assert reader.unpin(key(0))
    assert not reader.unpin(key(0))
    assert writer.remove(key(0))
    client = Client(server.url)
    assert (client.stats()["pins"], client.stats()["pages_resident"]) == (0, 0)
    client.close()


def test_a_full_pool_allocates_nothing(backends: Backends) -> None:
    backend = backends.make()
    full = backend.memory_allocator._full
    taken = []
    while (one := backend.allocate(full.shapes, full.dtypes)) is not None:
        taken.append(one)
    assert len(taken) > 100
    taken.pop().ref_count_down()
    again = backend.allocate(full.shapes, full.dtypes)
    assert again is not None
    for one in [*taken, again]:
        one.ref_count_down()
    assert backend.memory_allocator.memcheck()


def test_a_shorter_last_chunk(backends: Backends, server: Server) -> None:
    """As another user of the API may store it: fewer tokens than a full chunk."""
    backend = backends.make()
    token_bytes = backend._single_token_size
    config = MaruConfig(server.url, chunk_size_bytes=token_bytes * CHUNK_TOKENS)
    with MaruHandler(config) as other:
        handle = other.alloc(token_bytes * 3)
        handle.buf[:] = bytes([1]) * (token_bytes * 3)
        assert other.store(key(1).to_string(), handle)
    found = backend.get_blocking(key(1))
    assert found is not None
    assert found.get_num_tokens() == 3
    assert found.get_size() == token_bytes * 3
    found.ref_count_down()


def test_close_gives_everything_back(backends: Backends, server: Server) -> None:
    backend = backends.make()
    put(backend, 1, 7)
    assert backend.pin(key(1))
    found = backend.get_blocking(key(1))
    unfinished = backend.allocate(
        backend.memory_allocator._full.shapes, backend.memory_allocator._full.dtypes
    )
    assert found is not None
    assert unfinished is not None
    backends.made.remove(backend)
    backend.close()
    client = Client(server.url)
    eventually(
        lambda: (client.stats()["pins"], client.stats()["pages_reserved"]) == (0, 0),
        "nothing is held",
    )
    assert client.stats()["pages_resident"] == 1
    client.close()
