"""Two real LMCache servers on one pool: what goes in through one comes out of
the other, whoever is killed meanwhile."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lmcache_server import QUIET, TRANSFERS, LMCacheServer, Transfer, Worker
from processes import Server, eventually

from maru import Client

CHUNKS = 2


class Pair:
    """Two LMCache servers on one pool, with a worker each."""

    def __init__(self, maru: Server, transfer: Transfer) -> None:
        self.maru = maru
        self._transfer = transfer
        self.servers = [
            LMCacheServer(
                transfer.mode,
                ("--maru-server-url", maru.url, "--maru-instance-id", name, *transfer.maru),
            )
            for name in ("a", "b")
        ]
        self.workers = [self._worker(server) for server in self.servers]

    def _worker(self, server: LMCacheServer) -> Worker:
        return Worker(server, self._transfer.mode)

    def kill(self, index: int) -> None:
        self.servers[index].kill()
        self.workers[index].close()

    def restart(self, index: int) -> None:
        self.servers[index].start()
        self.workers[index] = self._worker(self.servers[index])

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        for server in self.servers:
            server.stop()


@pytest.fixture(params=TRANSFERS)
def pair(request: pytest.FixtureRequest, server: Server) -> Iterator[Pair]:
    pair = Pair(server, TRANSFERS[request.param])
    yield pair
    pair.close()


@pytest.fixture
def shm_pair(server: Server) -> Iterator[Pair]:
    pair = Pair(server, TRANSFERS["engine-driven-shm"])
    yield pair
    pair.close()


def arrives(worker: Worker, sequence: int) -> None:
    """What was stored is found, whole and right."""
    eventually(lambda: worker.retrieve(sequence) == CHUNKS, f"sequence {sequence} is there")


def holdings(url: str) -> tuple[int, int]:
    """Pins and reservations of everybody."""
    client = Client(url)
    stats = client.stats()
    client.close()
    return stats["pins"], stats["pages_reserved"]


def test_what_one_stores_the_other_retrieves(pair: Pair) -> None:
    first, second = pair.workers
    assert first.store(1)
    assert second.store(2)
    for worker in pair.workers:
        arrives(worker, 1)
        arrives(worker, 2)
        assert worker.retrieve(3) == 0
    # What the other stored is not stored again.
    assert second.store(1)
    client = Client(pair.maru.url)
    assert client.stats()["pages_resident"] == 2 * CHUNKS
    client.close()
    eventually(lambda: holdings(pair.maru.url) == (0, 0), "nothing is held")


def test_whoever_is_killed_the_others_go_on(pair: Pair) -> None:
    assert pair.workers[0].store(1)
    for index in (0, 1):
        survivor = 1 - index
        pair.kill(index)
        arrives(pair.workers[survivor], 1)
        assert pair.workers[survivor].store(10 + index)
        pair.restart(index)
        arrives(pair.workers[index], 1)
        arrives(pair.workers[index], 10 + index)
    # The Maru server, too, with everything that it has acknowledged.
    pair.maru.kill()
    pair.maru.start()
    for worker in pair.workers:
        arrives(worker, 1)
        arrives(worker, 10)
    assert pair.workers[0].store(20)
    arrives(pair.workers[1], 20)
    eventually(lambda: holdings(pair.maru.url) == (0, 0), "nothing is held")


def test_what_a_worker_has_not_finished_nobody_sees(shm_pair: Pair) -> None:
    """LMCache finishes the writes of workers that are gone, however far they got."""
    first, second = shm_pair.workers
    first.begin_store(1)
    assert holdings(shm_pair.maru.url) == (0, CHUNKS)
    first.close()
    assert second.retrieve(1) == 0
    # Another instance may store it meanwhile.
    assert second.store(1)
    arrives(second, 1)
    assert holdings(shm_pair.maru.url) == (0, CHUNKS)


@pytest.mark.parametrize(
    ("flags", "status", "says"),
    [
        (("--maru-pool-size-gb", "3"), 2, "--maru-pool-size-gb without --maru-server-url"),
        (("--maru-server-url", "nonsense"), 2, "maru://HOST:PORT"),
        (
            ("--maru-server-url", "/nowhere/maru.sock", "--maru-pool-size-gb", "0"),
            2,
            "pool_size_gb",
        ),
        (("--maru-server-url", "/nowhere/maru.sock"), 1, "start one with `maru serve`"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(flags: tuple[str, ...], status: int, says: str) -> None:
    command = [Path(sys.executable).parent / "maru-lmcache", "server", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **QUIET})
    assert ended.returncode == status
    assert says in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "command",
    [("lmcache", "server"), ("python", "-m", "lmcache.v1.multiprocess.http_server")],
    ids=["lmcache", "module"],
)
def test_a_server_module_keeps_what_the_server_was_told(
    server: Server, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """LMCache's own commands, with one option: the L2 that they were given stays."""
    module = {"module_path": "maru_lmcache.server", "config": {"server_url": server.url}}
    adapter = {"type": "fs", "base_path": str(tmp_path)}
    lmcache = LMCacheServer(
        "engine_driven",
        (
            *("--l1-size-gb", "0.1", "--no-l1-use-lazy", "--eviction-policy", "LRU"),
            *("--server-module", json.dumps(module), "--l2-adapter", json.dumps(adapter)),
        ),
        command,
    )
    worker = Worker(lmcache, "engine_driven")
    try:
        assert worker.store(1)
        arrives(worker, 1)
        eventually(lambda: len(list(tmp_path.iterdir())) == CHUNKS, "all chunks are in L2")
        client = Client(server.url)
        assert client.stats()["pages_resident"] == CHUNKS
        client.close()
    finally:
        worker.close()
        lmcache.stop()
