"""The server that tests use."""

import gc
from collections.abc import Iterator

import pytest
from processes import Server, eventually

from maru import Client


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of 32 MiB, where no test may leave anything held."""
    server = Server(32 << 20, ("--checksums",))
    yield server
    # What was dropped is given back a moment later.
    gc.collect()
    client = Client(server.url)

    def held() -> tuple[int, int]:
        stats = client.stats()
        return stats["pins"], stats["pages_reserved"]

    eventually(lambda: held() == (0, 0), "nothing is held")
    assert client.stats()["counters"]["rule_violations"] == 0
    client.close()
    server.stop()
