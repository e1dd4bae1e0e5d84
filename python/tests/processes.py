"""Real `maru serve` processes for tests."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# How long anything may take before a test gives up on it.
PATIENCE_S = 60


def program() -> str:
    """The `maru` program: MARU_PROGRAM, or what cargo built last."""
    named = os.environ.get("MARU_PROGRAM")
    if named:
        return named
    built = [ROOT / "target" / profile / "maru" for profile in ("release", "debug")]
    there = [path for path in built if path.exists()]
    if not there:
        raise RuntimeError("no maru program: cargo build -p maru, or set MARU_PROGRAM")
    return str(max(there, key=lambda path: path.stat().st_mtime))


class Server:
    """One `maru serve`, over a file in /dev/shm that goes with it.

    Args:
        pool_bytes: The pool's size.
        flags: More flags for `maru serve`.
    """

    def __init__(self, pool_bytes: int = 64 << 20, flags: tuple[str, ...] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="maru-test-"))
        self.pool = Path("/dev/shm") / f"{self.folder.name}.pool"
        self.socket = self.folder / "maru.sock"
        self.url = f"unix://{self.socket}"
        self._log = self.folder / "serve.log"
        self._command = [
            program(),
            "serve",
            *("--pool", f"{self.pool}:{pool_bytes}"),
            *("--socket", str(self.socket)),
            *flags,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stderr=log)
        end = time.monotonic() + PATIENCE_S
        while subprocess.run(
            [program(), "stat", "--server", str(self.socket), "--json"], capture_output=True
        ).returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"maru serve did not start:\n{self._log.read_text()}")

    def kill(self) -> None:
        """`kill -9`."""
        self._end(signal.SIGKILL)

    def replace(self) -> None:
        """Ends it, and starts another in its place, with a pool of its own."""
        self.kill()
        self._remove_pool()
        self.start()

    def stop(self) -> None:
        """Stops it in good order, and removes what it leaves."""
        self._end(signal.SIGTERM)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._remove_pool()

    def _remove_pool(self) -> None:
        for left in self.pool.parent.glob(f"{self.pool.name}*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)

    def _end(self, how: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(PATIENCE_S)

    def anonymous_bytes(self) -> int:
        """Its memory, without the pool."""
        assert self._process is not None
        return anonymous_bytes(self._process.pid)

    def log(self) -> str:
        return self._log.read_text()


def anonymous_bytes(pid: int) -> int:
    """A process's memory that is no file's."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"process {pid} has no memory: it is gone")


def eventually(is_so, what: str) -> None:  # type: ignore[no-untyped-def]
    """Waits until something is so."""
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > end:
            raise AssertionError(f"it never came about: {what}")
        time.sleep(0.01)
