"""Real `lmcache server` processes, and workers that use them as vLLM's would."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from lmcache.cli.commands.bench.server_bench.client import RequestContext, ServerBenchClient
from lmcache.cli.commands.bench.server_bench.config import BenchConfig
from lmcache.cli.commands.bench.server_bench.helpers import _make_key
from processes import PATIENCE_S, anonymous_bytes

# Two layers of two heads: 1 KiB a token, 256 KiB a chunk.
SHAPE = "(2,64,16,2,64):float16:2"
TOKENS = 512
QUIET = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_LOG_LEVEL": "WARNING"}


@dataclass(frozen=True)
class Transfer:
    """How workers and a server exchange KV.

    Attributes:
        mode: LMCache's transfer mode.
        maru: What a server with Maru's L1 is told for it.
        private: The same with LMCache's own.
    """

    mode: str
    maru: tuple[str, ...] = ()
    private: tuple[str, ...] = ()


TRANSFERS = {
    "engine-driven-pickle": Transfer("engine_driven", ("--no-maru-shared-memory",)),
    "engine-driven-shm": Transfer(
        "engine_driven", ("--maru-shared-memory",), ("--shm-name", f"maru_test_{os.getpid()}")
    ),
    "lmcache-driven": Transfer("lmcache_driven"),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LMCacheServer:
    """One LMCache server.

    Args:
        mode: Its `--supported-transfer-mode`.
        flags: More flags; Maru's, if its L1 is to be the pool.
        command: What starts it, from this environment; LMCache's own has other ways.
    """

    def __init__(
        self,
        mode: str,
        flags: tuple[str, ...],
        command: tuple[str, ...] = ("maru-lmcache", "server"),
    ) -> None:
        self._command = command
        self.rpc_url = ""
        self.http_url = ""
        self._log = Path(tempfile.mkstemp(prefix="lmcache-server-")[1])
        self._mode = mode
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        rpc, http = free_port(), free_port()
        self.rpc_url, self.http_url = f"tcp://127.0.0.1:{rpc}", f"http://127.0.0.1:{http}"
        command = [
            str(Path(sys.executable).parent / self._command[0]),
            *self._command[1:],
            *("--host", "127.0.0.1", "--port", str(rpc)),
            *("--http-host", "127.0.0.1", "--http-port", str(http)),
            *("--supported-transfer-mode", self._mode, "--disable-observability"),
            *self._flags,
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **QUIET}
            )
        end = time.monotonic() + 2 * PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"lmcache server did not start:\n{self.log()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.http_url}/", timeout=PATIENCE_S):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    def kill(self) -> None:
        """`kill -9`."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stops it in good order."""
        self._end(signal.SIGTERM)
        self._log.unlink(missing_ok=True)

    def _end(self, how: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(PATIENCE_S)

    def log(self) -> str:
        return self._log.read_text()

    def anonymous_bytes(self) -> int:
        """Its memory, without what it maps of the pool."""
        assert self._process is not None
        return anonymous_bytes(self._process.pid)


class WrongBytesError(AssertionError):
    """What was retrieved is not what was stored."""


class Worker:
    """A simulated vLLM worker: LMCache's own client, whose KV of a sequence is
    known, so that whatever comes back can be compared.

    Args:
        server: Where it stores and retrieves.
        transfer_mode: `engine_driven` or `lmcache_driven`.
        shape: The layers of its model, as LMCache's bench has them.

    Attributes:
        times_ms: How long what took, by `store` and `retrieve`.
    """

    def __init__(self, server: LMCacheServer, transfer_mode: str, shape: str = SHAPE) -> None:
        self.times_ms: dict[str, list[float]] = {"store": [], "retrieve": []}
        config = BenchConfig(
            rpc_url=server.rpc_url,
            mode="cpu",
            transfer_mode=transfer_mode,
            tp_size=1,
            use_mla=False,
            num_tokens=TOKENS,
            kvcache_shape_spec=shape,
            num_blocks=64,
            block_size=16,
            http_url=server.http_url,
        )
        self._client = ServerBenchClient(config, lambda _: None)
        self._client.start()

    def close(self) -> None:
        self._client.close()

    def _request(self, sequence: int) -> RequestContext:
        request = self._client.create_request(sequence, f"r-{uuid.uuid4()}", "test")
        assert request is not None, "it has full chunks"
        return request

    def _blocks(self, request: RequestContext) -> list[torch.Tensor]:
        """The parts of the KV caches that the request fills."""
        first, last = request.block_offset, request.block_offset + request.num_blocks
        caches = self._client._workers[0].kv_caches.values()
        return [cache[:, first:last] for cache in caches]

    def _expected(self, request: RequestContext) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(request.sequence_id)
        return [
            torch.randint(-30000, 30000, part.shape, dtype=torch.int16, generator=generator)
            for part in self._blocks(request)
        ]

    def store(self, sequence: int) -> bool:
        """Stores the sequence's KV. In the lmcache-driven mode others find it a moment
        later.

        Returns:
            Whether the server says that it did.
        """
        request = self._request(sequence)
        for part, expected in zip(self._blocks(request), self._expected(request), strict=True):
            part.view(torch.int16).copy_(expected)
        stored = self._client.store(request, 0, request.num_full_tokens)
        self._client.end_session(request)
        if stored is None or not stored.succeeded:
            return False
        self.times_ms["store"].append(stored.latency_ms)
        return True

    def begin_store(self, sequence: int) -> None:
        """Asks where to write the sequence's KV, and writes nothing."""
        request = self._request(sequence)
        spec = self._client._workers[0].spec
        key = _make_key(
            request.token_ids,
            request.request_id,
            start=0,
            end=request.num_full_tokens,
            worker_id=spec.kv_worker_id,
            world_size=spec.kv_world_size,
        )
        assert self._client._req_client is not None, "it is started"
        self._client._req_client.prepare_store(key, spec.instance_id).result(timeout=PATIENCE_S)

    def retrieve(self, sequence: int) -> int:
        """Retrieves what is there of the sequence, and compares it.

        Returns:
            How many chunks were there.

        Raises:
            WrongBytesError: They are not what was stored.
        """
        request = self._request(sequence)
        chunks = self._client.lookup(request).hit_chunks
        for part in self._blocks(request):
            part.zero_()
        if chunks:
            got = self._client.retrieve(request, 0, chunks * request.chunk_size)
            if got is None or not got.succeeded:
                # The server went away, or what it held did: a miss.
                chunks = 0
            else:
                self.times_ms["retrieve"].append(got.latency_ms)
        blocks = chunks * request.num_blocks // request.total_chunks
        for part, expected in zip(self._blocks(request), self._expected(request), strict=True):
            if not torch.equal(part[:, :blocks].view(torch.int16), expected[:, :blocks]):
                raise WrongBytesError(f"sequence {sequence}: {chunks} chunks came back wrong")
        self._client.end_session(request)
        return chunks
