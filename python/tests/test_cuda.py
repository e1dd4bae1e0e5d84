"""Registering with a GPU, against a stand-in that records what it is asked."""

import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from maru_lmcache.cuda import (
    CHUNK_BYTES,
    PORTABLE,
    READ_ONLY,
    RegistrationError,
    Span,
    register,
)

GIB = 1 << 30
BASE = 1 << 40


@dataclass
class Recorder:
    """Stands in for the CUDA runtime.

    Attributes:
        fails_at: Which registration fails, counted from 0.
        fails_to_undo: Addresses whose registration cannot be undone.
    """

    fails_at: int | None = None
    fails_to_undo: set[int] = field(default_factory=set)
    asked: list[tuple[int, int, int]] = field(default_factory=list)
    registered: dict[int, int] = field(default_factory=dict)

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.asked.append((address, size, flags))
        if len(self.asked) - 1 == self.fails_at:
            return 2
        self.registered[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        if address in self.fails_to_undo:
            return 1
        del self.registered[address]
        return 0


def test_each_view_is_registered_as_what_it_is() -> None:
    cuda = Recorder()
    spans = [Span(BASE, 3 * GIB, True), Span(2 * BASE, 3 * GIB, False)]
    registration = register(spans, cuda)
    assert cuda.asked == [
        (BASE, 3 * GIB, PORTABLE | READ_ONLY),
        (2 * BASE, 3 * GIB, PORTABLE),
    ]
    assert registration.count == 2
    registration.close()
    registration.close()
    assert not cuda.registered


def test_large_devices_are_registered_in_parts() -> None:
    cuda = Recorder()
    registration = register([Span(BASE, 150 * GIB, False)], cuda)
    assert [(address - BASE, size) for address, size, _ in cuda.asked] == [
        (0, 64 * GIB),
        (64 * GIB, 64 * GIB),
        (128 * GIB, 22 * GIB),
    ]
    registration.close()


def test_no_page_straddles_two_parts() -> None:
    """Regions lie where the server puts them: at multiples of their own size, a power of
    two of at most 1 GiB, from the device's start. A part begins at such a place, too."""
    for region in (2 << 20, 32 << 20, GIB):
        assert CHUNK_BYTES % region == 0


@pytest.mark.parametrize("fails_at", range(4))
def test_one_refusal_undoes_all(fails_at: int) -> None:
    cuda = Recorder(fails_at=fails_at)
    spans = [Span(BASE, 100 * GIB, True), Span(2 * BASE, 100 * GIB, False)]
    with pytest.raises(RegistrationError, match=r"CUDA error 2.*ulimit -l"):
        register(spans, cuda)
    assert len(cuda.asked) == fails_at + 1
    assert not cuda.registered


def test_what_cannot_be_undone_is_told() -> None:
    cuda = Recorder(fails_to_undo={BASE})
    registration = register([Span(BASE, GIB, False), Span(2 * BASE, GIB, False)], cuda)
    with pytest.raises(RegistrationError, match="0x10000000000"):
        registration.close()
    assert list(cuda.registered) == [BASE], "the other is undone all the same"


def test_nothing_of_it_is_loaded_where_it_is_not_needed() -> None:
    program = (
        "import sys, maru, maru_lmcache, maru_lmcache.cuda\n"
        "print([name for name in ('torch', 'lmcache', 'cuda') if name in sys.modules])\n"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]", loaded.stderr
