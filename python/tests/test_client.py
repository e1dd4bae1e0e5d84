"""Sessions and pages through the native module."""

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from processes import Server, eventually

from maru import Client, MaruError, Stale, Unreachable
from maru._native import Committed, Deletion, PinnedPage, Presence, Refused, ReservedPage

PAGE = 64 << 10


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.url, instance="test")


def pages(reserved: list[ReservedPage | Refused]) -> list[ReservedPage]:
    granted = [page for page in reserved if isinstance(page, ReservedPage)]
    assert len(granted) == len(reserved)
    return granted


def store(client: Client, *keys: str) -> None:
    written = pages(client.reserve(keys, PAGE))
    for key, page in zip(keys, written, strict=True):
        page.copy_from(key.encode()[:1] * PAGE)
    assert client.commit(written) == [Committed.STORED] * len(keys)


def only(client: Client, key: str) -> PinnedPage:
    page = client.acquire([key])[0]
    assert page is not None
    return page


def test_what_one_writes_the_other_reads_in_place(server: Server, client: Client) -> None:
    (page,) = pages(client.reserve(["k"], PAGE))
    view = memoryview(page)
    assert not view.readonly
    assert view.nbytes == len(page) == PAGE
    view[:5] = b"hello"
    assert Client(server.url).contains(["k"]) == [Presence.RESERVED]
    assert client.commit([page]) == [Committed.STORED]
    reader = Client(server.url)
    read = only(reader, "k")
    assert bytes(memoryview(read)[:5]) == b"hello"
    assert (read.region, read.offset, read.generation) == (
        page.region,
        page.offset,
        page.generation,
    )
    read.verify()
    read.confirm()
    reader.release([read])


def test_a_reader_cannot_write(client: Client) -> None:
    store(client, "k")
    view = memoryview(only(client, "k"))
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 1


def test_a_stray_write_through_the_pointer_ends_the_process(server: Server, client: Client) -> None:
    """The view is mapped read-only: not even through its address can it be written."""
    store(client, "k")
    program = (
        "import ctypes, maru, sys\n"
        "page = maru.Client(sys.argv[1]).acquire(['k'])[0]\n"
        "ctypes.memset(page.address, 0, 1)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, server.url])
    assert ended.returncode == -signal.SIGSEGV
    assert bytes(memoryview(only(client, "k"))[:1]) == b"k"


def test_memory_stays_mapped_until_the_last_view_dies(server: Server) -> None:
    client = Client(server.url)
    store(client, "k")
    view = memoryview(only(client, "k"))[10:20]
    whole = memoryview(client.memory())
    client.close()
    del client
    gc.collect()
    assert bytes(view) == b"k" * 10
    assert len(whole) == 32 << 20


def test_the_pin_is_held_until_the_last_view_dies(server: Server, client: Client) -> None:
    store(client, "k")
    view = memoryview(only(client, "k"))
    other = Client(server.url)
    assert other.delete(["k"]) == [Deletion.PINNED]
    view.release()
    eventually(lambda: other.delete(["k"]) == [Deletion.DELETED], "the pin goes with the view")


def test_a_page_that_is_looked_at_is_not_released(client: Client) -> None:
    store(client, "k")
    page = only(client, "k")
    view = memoryview(page)
    with pytest.raises(BufferError, match="still looks"):
        client.release([page])
    view.release()
    client.release([page])
    with pytest.raises(ValueError):
        page.confirm()
    with pytest.raises(BufferError):
        memoryview(page)


def test_pages_are_made_when_they_are_asked_for(server: Server, client: Client) -> None:
    names = [f"k{n}" for n in range(20)]
    store(client, *names)
    found = client.acquire([*names, "missing"])
    made = lambda: sum(type(one) is PinnedPage for one in gc.get_objects())  # noqa: E731
    assert (len(found), found.hits, found.is_hit(19), found.is_hit(20)) == (21, 20, True, False)
    before = made()
    first = found[0]
    assert first is found[0]
    assert found[-1] is None
    assert made() <= before + 1
    with pytest.raises(IndexError):
        found[21]
    assert Client(server.url).stats()["pins"] == 20
    client.release(found)
    assert Client(server.url).stats()["pins"] == 0
    assert first is not None
    assert first.is_lost()


def test_a_prefix_ends_at_the_first_miss(client: Client) -> None:
    store(client, "a", "b", "d")
    assert len(client.acquire(["a", "b", "c", "d"], stop_at_miss=True)) == 2
    client.flush()


def test_refusals_are_values(server: Server, client: Client) -> None:
    store(client, "k")
    assert client.reserve(["k"], PAGE) == [Refused.RESIDENT]
    kept = client.reserve(["w"], PAGE)
    assert client.reserve(["w"], PAGE) == [Refused.ALREADY_RESERVED]
    other = Client(server.url)
    assert other.reserve(["w"], PAGE, unless_being_written=True) == [Refused.BEING_WRITTEN]
    many = [f"m{n}" for n in range(600)]
    assert set(other.reserve(many, PAGE)) == {Refused.OUT_OF_MEMORY}
    small = Client(server.url, instance="small", budget_bytes=PAGE)
    assert small.reserve(["x", "y"], PAGE) == [Refused.OVER_BUDGET] * 2
    pages(kept)[0].abort()


def test_a_page_gets_its_name_later(client: Client) -> None:
    store(client, "taken")
    written = pages(client.reserve_unnamed(2, PAGE))
    outcomes = client.commit_as(["taken", "new"], written)
    assert outcomes == [Committed.SUPERSEDED, Committed.STORED]
    with pytest.raises(ValueError):
        client.commit_as(["new"], written)
    with pytest.raises(ValueError):
        client.commit_as(["one"], [])


def test_copies(server: Server, client: Client) -> None:
    (page,) = pages(client.reserve(["k"], PAGE))
    page.set_length(1000)
    with pytest.raises(ValueError):
        page.set_length(PAGE + 1)
    page.copy_from(os.urandom(PAGE))
    # Written in place after the copy: the checksum is of what is there then.
    memoryview(page)[:3] = b"abc"
    assert client.commit([page]) == [Committed.STORED]
    with pytest.raises(ValueError, match="before"):
        page.copy_from(bytes(PAGE))
    read = only(Client(server.url, verify="always"), "k")
    into = bytearray(1000)
    read.copy_to(into)
    assert into[:3] == b"abc"
    with pytest.raises((MaruError, ValueError)):
        read.copy_to(bytearray(999))
    with pytest.raises(TypeError):
        read.copy_to(bytes(1000))


@pytest.mark.parametrize("url", ["unix:///nowhere/maru.sock", "tcp://127.0.0.1:1"])
def test_nobody_there(url: str) -> None:
    with pytest.raises(Unreachable, match="maru serve"):
        Client(url, timeout_seconds=0.2)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError):
        Client("http://localhost")
    with pytest.raises(ValueError, match="always"):
        Client(verify="sometimes")
    with pytest.raises(ValueError, match="timeout_seconds"):
        Client(timeout_seconds=-1)


def test_nonsense_is_refused_by_a_session(client: Client) -> None:
    with pytest.raises(ValueError):
        client.acquire([""])
    with pytest.raises(ValueError):
        client.contains(["k" * 2000])
    with pytest.raises(TypeError):
        client.contains([7])  # type: ignore[list-item]
    with pytest.raises(MaruError, match="region"):
        client.reserve(["k"], 1 << 40)
    client.close()
    client.close()
    with pytest.raises(ValueError, match="closed"):
        client.stats()


def test_the_gil_is_free_while_a_server_is_waited_for() -> None:
    """A server that takes connections and never answers keeps one thread waiting."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started, ended = threading.Event(), threading.Event()

        def connect() -> None:
            started.set()
            with pytest.raises(Unreachable):
                Client(f"tcp://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=1)
            ended.set()

        waiting = threading.Thread(target=connect)
        waiting.start()
        started.wait()
        turns = 0
        while not ended.is_set():
            turns += 1
            time.sleep(0)
        waiting.join()
        assert turns > 1


def test_threads_share_a_session(server: Server) -> None:
    client = Client(server.url)
    wrong: list[str] = []

    def work(thread: int) -> None:
        for n in range(20):
            key = f"{thread}-{n}"
            store(client, key)
            found = only(client, key)
            if bytes(memoryview(found)[:1]) != key[:1].encode():
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    client.flush()


WRITER = """
import maru, os, signal, sys
client = maru.Client(sys.argv[1], instance="writer", outside_writers=sys.argv[2] == "outside")
pages = client.reserve(["w"], 65536)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("who", "quarantined"), [("alone", 0), ("outside", 1)])
def test_the_death_of_one_is_not_that_of_those_who_write_for_it(who: str, quarantined: int) -> None:
    """Rule 7: workers that reach pages through shared memory outlive the instance that
    reserved them, so what it held is not granted again at once."""
    server = Server(16 << 20, ("--quarantine-ms", "600000"))
    try:
        subprocess.run([sys.executable, "-c", WRITER, server.url, who])
        client = Client(server.url)
        eventually(lambda: client.stats()["pages_reserved"] == 0, "it is seen to be gone")
        assert client.stats()["pages_quarantined"] == quarantined
        client.close()
    finally:
        server.stop()


def test_a_restart_of_the_server_is_not_noticed() -> None:
    server = Server(16 << 20)
    try:
        client = Client(server.url, timeout_seconds=30)
        store(client, "k")
        read = only(client, "k")
        (half,) = pages(client.reserve(["h"], PAGE))
        server.kill()
        server.start()
        assert bytes(memoryview(read)[:1]) == b"k"
        read.confirm()
        half.copy_from(b"h" * PAGE)
        assert client.commit([half]) == [Committed.STORED]
        client.release([read])
        client.close()
    finally:
        server.stop()


def test_a_lost_session_makes_its_pages_stale() -> None:
    """Another server, with a pool of its own, in the place of the first."""
    server = Server(16 << 20, ("--durability", "none"))
    try:
        client = Client(server.url, timeout_seconds=30)
        store(client, "k")
        read = only(client, "k")
        server.replace()

        def is_stale() -> bool:
            try:
                read.confirm()
            except Stale:
                return True
            return False

        eventually(is_stale, "the session is known to be over")
        client.close()
    finally:
        server.stop()
