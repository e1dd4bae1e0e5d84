"""Registering the pool's memory with a GPU, where there is one.

The driver copies to and from registered host memory directly; from other
memory through a buffer of its own, at a fraction of the speed. Only where CUDA
is there is anything of this used.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

GIB = 1 << 30
# The most bytes that are registered at once. The pool's regions, and so its pages, never straddle a
# multiple of this from their device's start, so no copy of a page needs two registrations.
CHUNK_BYTES = 64 * GIB

# cudaHostRegister's flags, of driver_types.h.
PORTABLE = 0x01
READ_ONLY = 0x08


class Runtime(Protocol):
    """What is used of the CUDA runtime: ``torch.cuda.cudart()``. Each returns an
    error code, 0 for success."""

    def cudaHostRegister(self, address: int, size: int, flags: int) -> Any: ...
    def cudaHostUnregister(self, address: int) -> Any: ...


@dataclass(frozen=True)
class Span:
    """One device of the pool, as one of its views has it mapped.

    Attributes:
        address: Where it begins in this process.
        size_bytes: Its size.
        read_only: It is the view that is read through.
    """

    address: int
    size_bytes: int
    read_only: bool

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Address and bytes of each part that is registered at once."""
        for start in range(0, self.size_bytes, CHUNK_BYTES):
            yield self.address + start, min(CHUNK_BYTES, self.size_bytes - start)


class RegistrationError(RuntimeError):
    """The driver did not take the memory; nothing is left registered."""


class Registration:
    """Memory that is registered until :meth:`close`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._addresses: list[int] = []

    @property
    def count(self) -> int:
        """How many parts are registered."""
        return len(self._addresses)

    def add(self, span: Span) -> None:
        """Registers a span, part by part.

        Raises:
            RegistrationError: A part was refused. What was registered before
                stays so until :meth:`close`.
        """
        flags = PORTABLE | (READ_ONLY if span.read_only else 0)
        for address, size in span.chunks():
            code = int(self._runtime.cudaHostRegister(address, size, flags))
            if code != 0:
                raise RegistrationError(
                    f"cudaHostRegister of {size} bytes at {address:#x} failed with CUDA error "
                    f"{code}: look at `ulimit -l` and free memory, or go on without (slower)"
                )
            self._addresses.append(address)

    def close(self) -> None:
        """Undoes all of it, the last first. Twice is as good as once.

        Raises:
            RegistrationError: A part could not be undone; the others are.
        """
        failed = []
        while self._addresses:
            address = self._addresses.pop()
            code = int(self._runtime.cudaHostUnregister(address))
            if code != 0:
                failed.append(f"{address:#x} (CUDA error {code})")
        if failed:
            raise RegistrationError(f"cudaHostUnregister failed at {', '.join(failed)}")


def register(spans: Iterable[Span], runtime: Runtime) -> Registration:
    """Registers all spans, or none.

    Raises:
        RegistrationError: One was refused; the others are undone.
    """
    registration = Registration(runtime)
    try:
        for span in spans:
            registration.add(span)
    except RegistrationError:
        registration.close()
        raise
    return registration


def runtime() -> Runtime | None:
    """The CUDA runtime, if there is a GPU that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.cudart()  # type: ignore[no-any-return]
