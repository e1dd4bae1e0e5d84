"""How long a store and a retrieve take through `lmcache server`, with Maru's L1
beside LMCache's own in DRAM, taken in turns.

    venv/bin/python times.py [--requests N] [--json]
"""

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from lmcache_server import TRANSFERS, LMCacheServer, Transfer, Worker
from processes import Server, eventually

# Eight layers of 8 heads of 128 in 16 bits: 16 MiB a request of two chunks.
SHAPE = "(2,64,16,8,128):float16:8"
CHUNKS = 2
PRIVATE = ("--l1-size-gb", "1", "--no-l1-use-lazy", "--eviction-policy", "LRU")


def all_found(worker: Worker, sequence: int) -> bool:
    return worker.retrieve(sequence) == CHUNKS


def measure(transfer: Transfer, requests: int) -> dict[str, dict[str, float]]:
    """Medians in milliseconds, by L1 and operation."""
    maru = Server(1 << 30)
    flags = ("--maru-server-url", maru.url, *transfer.maru)
    servers = {
        "maru": LMCacheServer(transfer.mode, flags),
        "dram": LMCacheServer(transfer.mode, (*PRIVATE, *transfer.private), ("lmcache", "server")),
    }
    workers = {name: Worker(server, transfer.mode, SHAPE) for name, server in servers.items()}
    try:
        for sequence in range(requests + 1):
            for name in sorted(workers, reverse=sequence % 2 == 0):
                worker = workers[name]
                worker.store(sequence)
                eventually(partial(all_found, worker, sequence), "it is found")
    finally:
        for worker in workers.values():
            worker.close()
        for server in servers.values():
            server.stop()
        maru.stop()
    # The first ones find nothing warm.
    return {
        name: {what: statistics.median(times[1:]) for what, times in worker.times_ms.items()}
        for name, worker in workers.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=20, metavar="N")
    parser.add_argument("--json", action="store_true", help="print JSON rather than a table")
    args = parser.parse_args()
    found = {}
    for name, transfer in TRANSFERS.items():
        print(f"{name}: {args.requests} requests of 16 MiB to each", file=sys.stderr)
        found[name] = measure(transfer, args.requests)
    if args.json:
        print(json.dumps(found))
        return
    print(f"{'milliseconds, median':30}{'Maru':>8}{'DRAM':>8}{'ratio':>8}")
    for name, times in found.items():
        for what in ("store", "retrieve"):
            maru, dram = times["maru"][what], times["dram"][what]
            print(f"{name + ' ' + what:30}{maru:>8.1f}{dram:>8.1f}{maru / dram:>8.2f}")


if __name__ == "__main__":
    main()
