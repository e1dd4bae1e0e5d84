"""`MaruHandler`: the API that LMCache's in-process connector uses."""

import gc

import pytest
from processes import Server, eventually

from maru import AllocHandle, Client, MaruConfig, MaruError, MaruHandler, MemoryInfo

CHUNK = 64 << 10


def handler(server: Server, **settings: object) -> MaruHandler:
    return MaruHandler(MaruConfig(server.url, chunk_size_bytes=CHUNK, **settings))  # type: ignore[arg-type]


def put(pool: MaruHandler, key: str, content: bytes = b"x") -> None:
    handle = pool.alloc(len(content))
    handle.buf[:] = content
    assert pool.store(key, handle)


@pytest.mark.parametrize(
    "settings",
    [
        {"chunk_size_bytes": 0},
        {"chunk_size_bytes": 2 << 30},
        {"pool_size": 100},
        {"timeout_ms": 0},
        {"max_inflight": 0},
        {"expand_size": 0},
    ],
)
def test_sizes_that_make_no_sense(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        MaruConfig("maru://localhost:5555", **settings)  # type: ignore[arg-type]


def test_what_the_defaults_are() -> None:
    config = MaruConfig("maru://localhost:5555")
    assert (config.pool_size, config.chunk_size_bytes) == (100 << 20, 1 << 20)
    assert (config.auto_connect, config.timeout_ms, config.max_inflight) == (True, 2000, 64)
    assert (config.use_async_rpc, config.eager_map, config.auto_expand) == (True, True, True)
    assert (config.instance_id, config.expand_size, config.enable_stats) == (None, None, False)


def test_connecting(server: Server) -> None:
    lazy = handler(server, auto_connect=False)
    with pytest.raises(RuntimeError, match="connect"):
        lazy.alloc(1)
    assert lazy.connect()
    assert lazy.connect()
    lazy.close()
    lazy.close()
    nowhere = MaruConfig("unix:///nowhere/maru.sock", auto_connect=False, timeout_ms=100)
    assert not MaruHandler(nowhere).connect()
    nowhere.auto_connect = True
    with pytest.raises(MaruError, match="maru serve"):
        MaruHandler(nowhere)


def test_store_and_retrieve(server: Server) -> None:
    with handler(server) as writer, handler(server) as reader:
        handle = writer.alloc(5)
        assert isinstance(handle, AllocHandle)
        assert len(handle.buf) == 5
        handle.buf[:] = b"hello"
        assert not reader.exists("k")
        assert reader.retrieve("k") is None
        assert writer.store("k", handle=handle)
        assert reader.exists("k")
        found = reader.retrieve("k")
        assert isinstance(found, MemoryInfo)
        assert bytes(found.view) == b"hello"
        assert found.view.readonly
        assert (found.region_id, found.page_index) == (handle.region_id, handle.page_index)
        found.confirm()
        pages = reader.get_region_page_count(found.region_id)
        assert pages is not None
        assert 0 <= found.page_index < pages
        assert writer.get_owned_region_ids() == [found.region_id]
        there = reader.get_buffer_view(found.region_id, found.page_index * 4096, 5)
        assert there is not None
        assert bytes(there) == b"hello"
        assert reader.get_buffer_view(999, 0, 1) is None
        assert reader.get_region_page_count(999) is None


def test_a_chunk_is_written_once(server: Server) -> None:
    with handler(server) as pool, handler(server) as other:
        put(pool, "k", b"first")
        put(other, "k", b"later")
        found = other.retrieve("k")
        assert found is not None
        assert bytes(found.view) == b"first"
        assert pool.get_stats()["pages_resident"] == 1


def test_sizes_are_checked(server: Server) -> None:
    with handler(server) as pool:
        for size in (0, -1, CHUNK + 1):
            with pytest.raises(ValueError, match="chunk_size_bytes"):
                pool.alloc(size)
        handle = pool.alloc(CHUNK)
        with pytest.raises(ValueError, match="one each"):
            pool.batch_store(["a", "b"], [handle])
        pool.free(handle)
        pool.free(handle)
        with pytest.raises(ValueError, match="before"):
            pool.store("k", handle)


def test_a_full_pool(server: Server) -> None:
    with handler(server) as pool:
        handles: list[AllocHandle] = []

        def fill() -> None:
            while len(handles) < 1000:
                handles.append(pool.alloc(CHUNK))

        with pytest.raises(RuntimeError, match="no room"):
            fill()
        assert len(handles) > 200
        pool.batch_free(handles)
        # What is freed is there again at once.
        pool.free(pool.alloc(CHUNK))


def test_a_budget(server: Server) -> None:
    with handler(server, pool_size=4 * CHUNK, auto_expand=False) as pool:
        handles = [pool.alloc(CHUNK) for _ in range(4)]
        with pytest.raises(RuntimeError, match="pool_size"):
            pool.alloc(CHUNK)
        pool.batch_free(handles)


def test_batches(server: Server) -> None:
    # More than one request takes.
    names = [f"k{n}" for n in range(300)]
    with handler(server) as pool:
        handles = pool.batch_alloc([3] * len(names))
        for n, handle in enumerate(handles):
            handle.buf[:] = f"{n:03}".encode()
        assert pool.batch_store(names, handles) == [True] * len(names)
        assert pool.batch_exists([*names, "missing"]) == [True] * len(names) + [False]
        found = pool.batch_retrieve([*names, "missing"])
        assert [info and bytes(info.view) for info in found] == [
            *(f"{n:03}".encode() for n in range(300)),
            None,
        ]
        del found
        assert pool.batch_delete(names[:2]) in ([True] * 2, [False] * 2)


def test_pins(server: Server) -> None:
    with handler(server) as pool, handler(server) as other:
        put(pool, "a")
        put(pool, "b")
        put(pool, "d")
        assert pool.pin("a")
        assert pool.batch_pin(["a", "b", "c", "d"]) == [True, True, False, False]
        assert not pool.pin("c")
        assert [other.delete(key) for key in "abd"] == [False, False, True]
        assert pool.batch_unpin(["a", "b", "c"]) == [True, True, False]
        assert [other.delete(key) for key in "ab"] == [False, True]
        assert pool.unpin("a")
        assert not pool.unpin("a")
        assert not other.unpin("a")
        assert other.delete("a")


def test_what_is_retrieved_stays_while_it_is_looked_at(server: Server) -> None:
    with handler(server) as pool, handler(server) as other:
        put(pool, "k", b"bytes")
        found = pool.retrieve("k")
        assert found is not None
        view = found.view[1:3]
        del found
        gc.collect()
        assert not other.delete("k")
        assert bytes(view) == b"yt"
        view.release()
        eventually(lambda: other.delete("k"), "nobody looks at it any more")


def test_regions_are_told(server: Server) -> None:
    told: list[tuple[int, int]] = []
    with handler(server) as pool:
        pool.set_on_region_added(lambda region, pages: told.append((region, pages)))
        put(pool, "k")
        assert [region for region, _ in told] == pool.get_owned_region_ids()
        assert all(pages > 0 for _, pages in told)
        again: list[int] = []
        pool.set_on_region_added(lambda region, pages: again.append(region))
        assert again == [region for region, _ in told]
        pool.set_on_region_added(None)


def test_stats(server: Server) -> None:
    with handler(server, enable_stats=True) as pool:
        put(pool, "k")
        pool.exists("k")
        pool.exists("l")
        stats = pool.get_stats()
        assert stats["counters"]["committed"] == 1
        assert stats["handler"]["exists"]["calls"] == 2
        assert stats["handler"]["store"]["seconds"] > 0


def test_a_server_that_is_away_makes_misses() -> None:
    server = Server(16 << 20)
    pool = handler(server, timeout_ms=200)
    put(pool, "k")
    server.kill()
    assert pool.retrieve("k") is None
    assert not pool.exists("k")
    assert not pool.pin("k")
    assert not pool.delete("k")
    with pytest.raises(RuntimeError):
        pool.alloc(1)
    server.start()
    eventually(lambda: pool.exists("k"), "it is back")
    pool.close()
    server.stop()


def test_closing_gives_everything_back(server: Server) -> None:
    pool = handler(server)
    put(pool, "k")
    pool.pin("k")
    found, handle = pool.retrieve("k"), pool.alloc(1)
    pool.close()
    client = Client(server.url)
    eventually(
        lambda: (client.stats()["pins"], client.stats()["pages_reserved"]) == (0, 0),
        "nothing is held",
    )
    # Nor does a late hand harm anybody.
    assert found is not None
    del found, handle
    client.close()


def test_chunks_of_other_sizes_are_told_apart(server: Server) -> None:
    """A region is cut for its writer's pages, whatever its reader's are."""
    with (
        MaruHandler(MaruConfig(server.url, chunk_size_bytes=4096)) as small,
        handler(server) as pool,
    ):
        for n in range(4):
            put(small, f"k{n}", bytes([n]) * 4096)
        found = [pool.retrieve(f"k{n}") for n in range(4)]
        places = {(info.region_id, info.page_index) for info in found if info is not None}
        assert len(places) == 4
        for n, info in enumerate(found):
            assert info is not None
            page = pool.page_at(info.region_id, info.page_index)
            assert page is info.page
            assert bytes(memoryview(page)[:1]) == bytes([n])


def test_two_who_look_at_one_chunk_do_not_lose_it_for_each_other(server: Server) -> None:
    with handler(server) as pool:
        put(pool, "k")
        first, second = pool.retrieve("k"), pool.retrieve("k")
        assert first is not None
        assert second is not None
        place = second.region_id, second.page_index
        del second
        gc.collect()
        assert pool.page_at(*place) is first.page
