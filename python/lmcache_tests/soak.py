"""Random load on two LMCache servers that share a pool, for as long as one likes.

    venv/bin/python soak.py [--seconds N] [--seed S]

Two workers each store and retrieve sequences at random, the popular ones more
often, in a pool that holds a part of them. Everything that comes back is
compared. At the end nothing may be held, and no process may have grown.
"""

import argparse
import random
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from lmcache_server import TRANSFERS, LMCacheServer, Worker
from processes import Server, eventually

from maru import Client

MIB = 1 << 20
POOL_BYTES = 32 * MIB
SEQUENCES = 200
# What allocators and caches may still settle by, after the first third.
GROWTH_BYTES = 24 * MIB
GROWTH = 0.05


class Load:
    """One worker's random requests, on a thread of its own."""

    def __init__(self, worker: Worker, seed: int, end: float) -> None:
        self.stores = self.hits = self.misses = 0
        self.error: BaseException | None = None
        self._worker = worker
        self._random = random.Random(seed)
        self._end = end
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            while time.monotonic() < self._end:
                self._step()
        except BaseException as error:  # It is told by who waits for the thread.
            self.error = error

    def _step(self) -> None:
        sequence = int(SEQUENCES * self._random.random() ** 3)
        found = self._worker.retrieve(sequence)
        if found:
            self.hits += 1
        else:
            self.misses += 1
            self.stores += self._worker.store(sequence)


def soak(seconds: int, seed: int) -> None:
    maru = Server(POOL_BYTES, ("--checksums",))
    transfers = [TRANSFERS["engine-driven-shm"], TRANSFERS["lmcache-driven"]]
    servers = [
        LMCacheServer(
            transfer.mode,
            ("--maru-server-url", maru.url, "--maru-verify", "always", *transfer.maru),
        )
        for transfer in transfers
    ]
    workers = [
        Worker(server, transfer.mode) for server, transfer in zip(servers, transfers, strict=True)
    ]
    client = Client(maru.url)
    begin = time.monotonic()
    loads = [Load(worker, seed + n, begin + seconds) for n, worker in enumerate(workers)]
    sizes: dict[str, list[int]] = {}
    told = begin
    while any(load.thread.is_alive() for load in loads):
        time.sleep(0.5)
        if time.monotonic() > begin + seconds / 3:
            for name, server in zip(("engine-driven", "lmcache-driven"), servers, strict=True):
                sizes.setdefault(f"lmcache server ({name})", []).append(server.anonymous_bytes())
            sizes.setdefault("maru serve", []).append(maru.anonymous_bytes())
        if time.monotonic() > told + 5:
            told = time.monotonic()
            done = sum(load.hits + load.misses for load in loads)
            print(f"{told - begin:4.0f} s: {done} requests", file=sys.stderr)
    for load in loads:
        load.thread.join()
        if load.error is not None:
            raise load.error
    for worker in workers:
        worker.close()
    eventually(
        lambda: (client.stats()["pins"], client.stats()["pages_reserved"]) == (0, 0),
        "nothing is held",
    )
    stats = client.stats()
    client.close()
    for server in servers:
        server.stop()
    maru.stop()
    report(loads, sizes, stats)


def report(loads: list[Load], sizes: dict[str, list[int]], stats: dict) -> None:  # type: ignore[type-arg]
    """Says what came of it; raises if that is not as it must be."""
    hits, misses = sum(load.hits for load in loads), sum(load.misses for load in loads)
    counters = stats["counters"]
    evicted = counters["evicted_for_room"] + counters["evicted_by_watermark"]
    print(f"{hits} hits, {misses} misses, {sum(load.stores for load in loads)} stores")
    print(f"{counters['committed']} chunks stored, {evicted} evicted; wrong bytes 0")
    print("pins and reservations left: 0")
    grown = []
    for name, found in sizes.items():
        first, last = found[: len(found) // 5 + 1], found[-(len(found) // 5 + 1) :]
        before, after = sorted(first)[len(first) // 2], sorted(last)[len(last) // 2]
        print(f"{name}: {before / MIB:.1f} MiB after a third, {after / MIB:.1f} MiB at the end")
        if after > before * (1 + GROWTH) + GROWTH_BYTES:
            grown.append(name)
    if grown:
        raise AssertionError(f"grown: {', '.join(grown)}")
    if counters["rule_violations"]:
        raise AssertionError(f"{counters['rule_violations']} rules were found broken")
    if not (hits and evicted):
        raise AssertionError("there was no load: no hit, or nothing to be evicted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=int, default=60, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    args = parser.parse_args()
    soak(args.seconds, args.seed)


if __name__ == "__main__":
    main()
