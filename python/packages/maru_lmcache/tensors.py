"""Tensors over pages."""

import warnings

import torch
from typing_extensions import Buffer


def _warn_once() -> None:
    """torch warns, once a process, that it cannot keep a tensor over read-only
    memory from being written to. Here writing faults, so nobody need be told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(b"\0", dtype=torch.uint8)


_warn_once()


def bytes_tensor(buffer: Buffer) -> torch.Tensor:
    """The bytes of a page as a flat tensor that keeps the page alive. Writing to
    that of a read-only page ends the process."""
    return torch.frombuffer(buffer, dtype=torch.uint8)
