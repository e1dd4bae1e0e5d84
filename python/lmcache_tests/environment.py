"""Sets up what Maru's tests against the real LMCache need, on a machine without a GPU.

    python3 environment.py FOLDER

FOLDER/venv gets the packages of requirements.txt, and stand-ins for the NVIDIA libraries that
torch is linked to; FOLDER/tests gets LMCache's own tests. That takes minutes once; a run that finds
it all there, made from the same files, takes no time.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import html.parser
import http.client
import importlib.util
import io
import json
import os
import shlex
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tarfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cuda_stubs

HERE = Path(__file__).resolve().parent
# A change to one of these makes a new environment.
SOURCES = ("requirements.txt", "cuda_stubs.py", "environment.py")
# lmcache has no packages for later ones; earlier patches cannot filter what a tar file unpacks.
PYTHON_MIN, PYTHON_END = (3, 11, 4), (3, 14)
# 2 GB stay; pip needs the rest while it unpacks.
DISK_BYTES = 4 << 30
PYPI = "https://pypi.org/simple"
# LMCache's source package: its tests are in no other.
PACKAGE = "lmcache-0.5.6.tar.gz"
PACKAGE_SHA256 = "d6951e60ce8818a76aa42d0866a4ba85f1c95cd919355fff30ff24dcc3243f1e"
# It wants transformers, for fixtures that no test of an L1 uses.
LEFT_OUT = "tests/conftest.py"
DOWNLOAD_BYTES_MAX = 64 << 20
DOWNLOAD_TRIES = 3
DOWNLOAD_TIMEOUT_S = 60
# Lines of a failed program's output that are shown: the last ones say why.
OUTPUT_LINES_MAX = 60
SMOKE = "import torch, lmcache.v1.distributed.l1_manager"


class SetupError(Exception):
    """What happened, to what, and what to do next."""


def main() -> None:
    """Makes sure that the environment is there."""
    if len(sys.argv) != 2:
        sys.exit("usage: python3 environment.py FOLDER")
    folder = Path(sys.argv[1]).resolve()
    try:
        cuda_stubs.refuse_driver()
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            ensure(folder)
    except (SetupError, cuda_stubs.StubError) as error:
        sys.exit(f"no LMCache environment in {folder}: {error}")
    except OSError as error:
        sys.exit(f"no LMCache environment in {folder}: {error}; put that right and run again")
    except KeyboardInterrupt:
        sys.exit(f"interrupted; run again, and what is half made in {folder} is made anew")


def ensure(folder: Path) -> None:
    """Makes the environment unless it is there, whole and of this making."""
    stamp, wanted = folder / "stamp", fingerprint(folder)
    whole = all((folder / part).exists() for part in ("venv/bin/python", "tests"))
    if whole and stamp.exists() and stamp.read_text() == wanted:
        say(f"{folder} is up to date")
        return
    # The stamp goes first and comes last: without it, what is there may be half made.
    stamp.unlink(missing_ok=True)
    check_machine()
    for part in ("venv", "tests"):
        if (folder / part).exists():
            with step(f"removing the old {folder / part}"):
                shutil.rmtree(folder / part)
    free = shutil.disk_usage(folder).free
    if free < DISK_BYTES:
        raise SetupError(
            f"its disk has {free / 1e9:.1f} GB free, and {DISK_BYTES / 1e9:.1f} GB are needed: "
            "make room there and run again"
        )
    python = make_venv(folder / "venv")
    unpack_tests(python, folder)
    check_imports(python)
    fresh = folder / "stamp.new"
    fresh.write_text(wanted)
    fresh.replace(stamp)


def check_machine() -> None:
    """Looks for the programs that are needed, and names all that are missing at once."""
    missing = []
    if not PYTHON_MIN <= sys.version_info[:3] < PYTHON_END:
        least, end = (".".join(map(str, version)) for version in (PYTHON_MIN, PYTHON_END))
        running = sys.version.split()[0]
        missing.append(f"Python from {least} to before {end} as python3 (this is {running})")
    if not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
        missing.append("Python's venv with pip (Debian: python3-venv)")
    if not shutil.which("gcc"):
        missing.append("gcc (Debian: gcc)")
    if not shutil.which("readelf"):
        missing.append("readelf (Debian: binutils)")
    if missing:
        raise SetupError(f"install what is missing and run again: {'; '.join(missing)}")


def make_venv(venv: Path) -> Path:
    """Makes the virtual environment with all packages and stand-ins; returns its python."""
    python = venv / "bin" / "python"
    with step(f"making {venv}"):
        run([sys.executable, "-m", "venv", str(venv)], "Install Python's venv whole, and run again")
    with step("installing lmcache, torch and what they need, 1.8 GB"):
        requirements = str(HERE / "requirements.txt")
        pip = [*isolated(python), "-m", "pip", "install", "--no-deps", "--no-input"]
        pip += ["--disable-pip-version-check", "--progress-bar", "off", "-r", requirements]
        run(pip, "See that pip reaches its index, and that this disk and TMPDIR's have room")
    with step("making stand-ins for NVIDIA's libraries"):
        paths = {"base": str(venv), "platbase": str(venv)}
        made = cuda_stubs.make(Path(sysconfig.get_path("platlib", "venv", paths)))
        say(f"{len(made)} libraries with {sum(made.values())} symbols")
    return python


def unpack_tests(python: Path, folder: Path) -> None:
    """Unpacks the tests of LMCache's source package, and nothing else of it, into the folder."""
    with step(f"downloading the tests in {PACKAGE}"):
        package = download_package(pip_settings(python))
    root = PACKAGE.removesuffix(".tar.gz") + "/"
    count = 0
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for member in archive:
            name = member.name.removeprefix(root)
            if member.isfile() and name.startswith("tests/") and name != LEFT_OUT:
                archive.extract(member.replace(name=name, deep=False), folder, filter="data")
                count += 1
    say(f"{count} files in {folder / 'tests'}")


def pip_settings(python: Path) -> dict[str, str]:
    """What pip is told by its files and the environment; pip alone knows where to look."""
    lines = run(
        [*isolated(python), "-m", "pip", "config", "list"], "Mend pip's configuration and run again"
    )
    found: dict[str, dict[str, str]] = {}
    for line in lines.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if value.startswith(("'", '"')):
            found.setdefault(section, {})[option] = ast.literal_eval(value)
    settings = {}
    # Later ones win, as with pip.
    for section in ("global", "install", ":env:"):
        settings.update(found.get(section, {}))
    return settings


def download_package(settings: dict[str, str]) -> bytes:
    """LMCache's source package, from the index that pip uses.

    pip cannot do this: it would build what it downloads, and this is not built without CUDA.
    """
    index = settings.get("index-url", PYPI).rstrip("/")
    if "@" in urllib.parse.urlsplit(index).netloc:
        raise SetupError(
            f"pip's index-url has a password in it, with which {PACKAGE} cannot be downloaded: "
            f"run again with PIP_INDEX_URL set to an index without one, such as {PYPI}"
        )
    cert = settings.get("cert")
    try:
        context = ssl.create_default_context(cafile=cert)
    except OSError as error:
        raise SetupError(
            f"pip's cert {cert} cannot be read: {error}; set PIP_CERT to a file of certificates"
        ) from error
    page, address, kind = download(f"{index}/lmcache/", context)
    links = [urllib.parse.urljoin(address, link) for link in read_links(page, kind)]
    named = [url for url in links if urllib.parse.urlsplit(url).path.endswith(f"/{PACKAGE}")]
    if not named:
        raise SetupError(
            f"{address} has no {PACKAGE}: run again with PIP_INDEX_URL set to an index that has "
            f"source packages, such as {PYPI}"
        )
    url = named[0]
    package = download(url, context)[0]
    digest = hashlib.sha256(package).hexdigest()
    if digest != PACKAGE_SHA256:
        raise SetupError(
            f"{url} has the SHA-256 {digest} and should have {PACKAGE_SHA256}: run again, and if "
            "it stays so, do not trust that index"
        )
    return package


def read_links(page: bytes, kind: str) -> list[str]:
    """Where an index page leads; none if it is no index page."""
    if kind.endswith("json"):
        try:
            return [str(file["url"]) for file in json.loads(page)["files"]]
        except (ValueError, TypeError, KeyError):
            return []
    parser = Links()
    parser.feed(page.decode(errors="replace"))
    return parser.links


class Links(html.parser.HTMLParser):
    """The links of an index page that is not JSON: many mirrors have no other."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keeps where an anchor leads."""
        self.links += [value for name, value in attrs if (tag, name) == ("a", "href") and value]


def download(url: str, context: ssl.SSLContext) -> tuple[bytes, str, str]:
    """What is at an address, the address in the end, and the type of what is there."""
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5, */*;q=0.1"
    request = urllib.request.Request(url, headers={"Accept": accept})
    for tries_left in reversed(range(DOWNLOAD_TRIES)):
        try:
            with urllib.request.urlopen(
                request, timeout=DOWNLOAD_TIMEOUT_S, context=context
            ) as answer:
                body = answer.read(DOWNLOAD_BYTES_MAX + 1)
                kind = answer.headers.get_content_type()
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not tries_left:
                raise SetupError(
                    f"cannot download {url}: {error}; see that this machine reaches it (pip's "
                    "index-url and cert, and https_proxy, are heeded) and run again"
                ) from error
            time.sleep(1)
            continue
        if len(body) > DOWNLOAD_BYTES_MAX:
            raise SetupError(
                f"{url} has more than {DOWNLOAD_BYTES_MAX} bytes, so it is not what is expected: "
                "see that pip's index-url is a package index"
            )
        return body, answer.url, kind
    raise AssertionError("the last try returns or raises")


def check_imports(python: Path) -> None:
    """Imports what the tests will, so that what is missing shows here."""
    with step("importing torch and lmcache"):
        # LD_BIND_NOW: a symbol that no stand-in has shows now, not in the test that comes to it.
        quiet = {"LMCACHE_TRACK_USAGE": "false", "LD_BIND_NOW": "1"}
        run(
            [*isolated(python), "-c", SMOKE],
            "A module that is missing belongs into requirements.txt, a symbol into cuda_stubs.py",
            quiet,
        )


def isolated(python: Path) -> list[str]:
    """This python without the caller's PYTHONPATH and folder."""
    return [str(python), "-I"]


def run(command: list[str], advice: str, environment: dict[str, str] | None = None) -> str:
    """Runs a program; its output is returned, or shown with the advice if it fails."""
    done = subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # It has the lock too: if only this process is killed, nobody else may begin before it ends.
        close_fds=False,
        check=False,
    )
    if done.returncode:
        shown = "\n".join(done.stdout.splitlines()[-OUTPUT_LINES_MAX:])
        raise SetupError(f"{shlex.join(command)} failed with {done.returncode}:\n{shown}\n{advice}")
    return done.stdout


def fingerprint(folder: Path) -> str:
    """What an environment is made from: these files, this Python, and where: its scripts say so."""
    parts = [hashlib.sha256((HERE / name).read_bytes()).hexdigest() for name in SOURCES]
    parts += [f"{sys.version_info[0]}.{sys.version_info[1]}", str(folder)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; waits for whoever has it."""
    with (folder / "lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step(f"waiting for another run, which has {folder / 'lock'}"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def step(what: str) -> Iterator[None]:
    """Says what is done, and how long it took."""
    say(f"{what} ...")
    start = time.monotonic()
    yield
    say(f"{what}: ok, {time.monotonic() - start:.1f} s")


def say(line: str) -> None:
    """Tells where this is; on standard error, as cargo xtask does."""
    print(f"lmcache environment: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
