"""Fixtures of the tests against the real LMCache."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from processes import Server


@pytest.fixture
def server() -> Iterator[Server]:
    """A Maru server over 64 MiB, and what no test may leave behind in it."""
    server = Server()
    yield server
    server.stop()
