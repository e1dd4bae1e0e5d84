"""Both L1 managers through the native module."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from processes import Server, eventually

from maru import MaruError
from maru._native import L1Manager

CHUNK = 64 << 10
SUCCESS, NOT_EXIST, NOT_READABLE, NOT_WRITABLE, WRONG_STATE, LOCKED, NO_MEMORY = range(1, 8)


@dataclass(frozen=True)
class Key:
    """Has LMCache's attributes."""

    chunk_hash: bytes
    model_name: str = "org/model"
    kv_rank: int = 0x01000100
    object_group_id: int = 0
    cache_salt: str = ""


KEYS = [Key(bytes([n]) * 4) for n in range(3)]
TEXTS = [f"org/model@01000100@{n:02x}{n:02x}{n:02x}{n:02x}@0" for n in range(3)]


class Listener:
    def __init__(self) -> None:
        self.told: list[tuple[str, list[str]]] = []

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        if not name.startswith("on_l1_"):
            raise AttributeError(name)
        return lambda *keys: self.told.append((name.removeprefix("on_l1_"), *keys))


@pytest.fixture(params=["local", "maru"])
def l1(request: pytest.FixtureRequest, server: Server) -> Iterator[L1Manager]:
    if request.param == "local":
        manager = L1Manager.local(8 << 20)
    else:
        manager = L1Manager.maru(server.url, instance="l1")
    yield manager
    manager.close()


def test_a_life(l1: L1Manager) -> None:
    listener = Listener()
    l1.register_listener(listener)
    staged = l1.reserve_write(KEYS, [False] * 3, CHUNK, tag="a")
    assert list(staged.codes) == [SUCCESS] * 3
    chunk = staged.chunk(0)
    assert chunk.is_writable
    assert chunk.is_open()
    assert len(chunk) == CHUNK
    assert chunk.copy_from(b"7" * CHUNK)
    assert l1.staging_memory_usage() == 3 * CHUNK
    assert list(l1.reserve_read(KEYS).codes) == [NOT_EXIST] * 3
    assert list(l1.finish_write(KEYS[:2], tag="a")) == [SUCCESS] * 2
    assert list(l1.finish_write_and_delete(KEYS[2:], tag="a")) == [SUCCESS]
    assert not chunk.is_open()
    assert not chunk.copy_from(b"8" * CHUNK)
    # Keys go as LMCache's objects or as their text.
    read = l1.reserve_read(TEXTS, 2)
    assert list(read.codes) == [SUCCESS, SUCCESS, NOT_EXIST]
    again = l1.unsafe_read(KEYS[:1])
    assert again.place(0) == read.place(0)
    found = read.chunk(0)
    into = bytearray(CHUNK)
    assert found.copy_to(into)
    assert into == b"7" * CHUNK
    with pytest.raises(ValueError):
        read.chunk(2)
    assert l1.object_state(KEYS[0]) == (2, False)
    assert list(l1.delete(KEYS[:1])) == [LOCKED]
    assert list(l1.finish_read(KEYS[:2], 2)) == [SUCCESS] * 2
    assert list(l1.finish_read(KEYS[:1])) != [SUCCESS]
    assert list(l1.delete(KEYS[:1])) == [SUCCESS]
    l1.touch_keys(KEYS[1:2])
    # That others' deletions went untold before it listened comes at any time.
    assert [one for one in listener.told if one != ("deletions_missed",)] == [
        ("keys_reserved_write", TEXTS),
        ("keys_write_finished", TEXTS[:2]),
        ("keys_deleted_by_manager", TEXTS[2:]),
        ("keys_reserved_read", TEXTS[:2]),
        ("keys_read_finished", TEXTS[:2]),
        ("keys_deleted_by_manager", TEXTS[:1]),
        ("keys_accessed", TEXTS[1:2]),
    ]
    assert l1.report_status()["is_healthy"]
    assert l1.memcheck()


def test_a_passage(l1: L1Manager) -> None:
    """A temporary chunk: written, read once, gone."""
    staged = l1.reserve_write(KEYS[:1], [True], CHUNK)
    assert staged.chunk(0).copy_from(b"t" * CHUNK)
    read = l1.finish_write_and_reserve_read(KEYS[:1])
    assert list(read.codes) == [SUCCESS]
    chunk = read.chunk(0)
    assert chunk.is_open()
    assert list(l1.finish_read(KEYS[:1])) == [SUCCESS]
    assert list(l1.reserve_read(KEYS[:1]).codes) == [NOT_EXIST]
    # Whoever still has it keeps the memory.
    del chunk, read, staged
    assert l1.memory_usage()[0] == 0


def test_nonsense(l1: L1Manager) -> None:
    with pytest.raises(ValueError, match="one each"):
        l1.reserve_write(KEYS, [False], CHUNK)
    with pytest.raises(ValueError):
        l1.reserve_write(KEYS[:1], [False], 0)
    with pytest.raises(ValueError):
        l1.reserve_read(["no key"])
    with pytest.raises((AttributeError, TypeError)):
        l1.reserve_read([7])
    with pytest.raises(ValueError, match="@"):
        l1.reserve_read([Key(b"a", model_name="a@b")])
    staged = l1.reserve_write(KEYS[:1], [False], CHUNK)
    with pytest.raises(ValueError, match="bytes"):
        staged.chunk(0).copy_from(b"short")
    codes = l1.reserve_write(KEYS, [False] * 3, CHUNK).codes
    assert list(codes) == [NOT_WRITABLE, SUCCESS, SUCCESS]


def test_too_much(l1: L1Manager) -> None:
    many = [Key(n.to_bytes(4, "big")) for n in range(700)]
    assert set(l1.reserve_write(many, [False] * 700, CHUNK).codes) == {NO_MEMORY}
    assert l1.memory_usage()[0] == 0


def test_a_listener_that_fails_harms_nobody(l1: L1Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", failures.append)
    good = Listener()
    l1.register_listener(object())
    l1.register_listener(good)
    assert list(l1.reserve_write(KEYS[:1], [False], CHUNK).codes) == [SUCCESS]
    assert ("keys_reserved_write", TEXTS[:1]) in good.told
    assert failures


def test_after_the_close(l1: L1Manager) -> None:
    l1.close()
    l1.close()
    assert list(l1.reserve_write(KEYS[:1], [False], CHUNK).codes) == [NO_MEMORY]
    assert list(l1.reserve_read(KEYS[:1]).codes) == [NOT_EXIST]
    assert l1.memory_desc() is None


def test_two_managers_share_a_pool(server: Server) -> None:
    a, b = (L1Manager.maru(server.url, instance=name) for name in "ab")
    heard = Listener()
    a.register_listener(heard)
    eventually(lambda: ("deletions_missed",) in heard.told, "a hears from now on")
    staged = a.reserve_write(KEYS[:1], [False], CHUNK)
    memory = memoryview(a.memory(writable=True))
    _, offset, size = staged.place(0)
    memory[offset : offset + size] = b"s" * size
    a.finish_write(KEYS[:1])
    assert list(b.reserve_write(KEYS[:1], [False], CHUNK).codes) == [NOT_WRITABLE]
    read = b.reserve_read(KEYS[:1])
    _, offset, size = read.place(0)
    assert bytes(memoryview(b.memory())[offset : offset + size]) == b"s" * size
    assert list(a.delete(KEYS[:1], force=True)) == [LOCKED], "b reads it"
    b.finish_read(KEYS[:1])
    assert list(b.delete(KEYS[:1])) == [SUCCESS]
    eventually(
        lambda: ("keys_deleted_by_manager", TEXTS[:1]) in heard.told, "what b deleted is told to a"
    )
    assert a.capacity_bytes_by_backend() == {"dram": 32 << 20}
    for manager in (a, b):
        manager.close()


def test_no_server() -> None:
    with pytest.raises(MaruError, match="maru serve"):
        L1Manager.maru("unix:///nowhere/maru.sock", timeout_seconds=0.2)
    with pytest.raises(ValueError):
        L1Manager.local(0)
    with pytest.raises(ValueError, match="pool"):
        L1Manager.local(1 << 20).memory()
