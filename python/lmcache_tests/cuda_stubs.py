"""Stand-ins for the NVIDIA libraries that torch is linked to.

PyPI's torch for Linux does not load without CUDA's libraries, even where there is no GPU to use
them with, and they take several GB. A stand-in has the name and the symbols that torch looks for,
and each of its functions says that there is no device.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

# cudaErrorNoDevice; not success in the other libraries either.
NO_DEVICE = 100
# The libraries of CUDA and of what comes with it.
NVIDIA = re.compile(r"lib(cu|nccl|nv)[\w-]*\.so\.\d+$")
# What a library's functions begin with, where that is not the library's name.
PREFIXES = {"cuda": ("cu",), "cudart": ("cuda", "__cuda"), "nccl": ("nccl", "pnccl")}
# readelf's lines: a library that is needed, one whose symbols have versions, one such version with
# its number, and an undefined symbol with the number of its version.
NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
VERSIONS_OF = re.compile(r"Version: \d+\s+File: (\S+)\s+Cnt:")
VERSION = re.compile(r"Name: (\S+)\s+Flags: .*Version: (\d+)")
SYMBOL = re.compile(r"(?:GLOBAL|WEAK)\s+DEFAULT\s+(\w+)\s+([^\s@]+)(?:@\S+ \((\d+)\))?")


class StubError(Exception):
    """A stand-in cannot or must not be made: why, and what to do next."""


class Wanted:
    """What the libraries in a folder want of NVIDIA's.

    Attributes:
        symbols: For each library that one of them needs, the symbols it must have, each with its
            version or "".
    """

    def __init__(self, libraries: list[Path]) -> None:
        self.symbols: dict[str, dict[str, str]] = {}
        # An undefined symbol without a version does not say whose it is.
        self._unowned: set[str] = set()
        self._defined: set[str] = set()
        for library in libraries:
            self._read(library)
        for symbol in self._unowned - self._defined:
            owner = self._owner(symbol)
            if owner:
                self.symbols[owner].setdefault(symbol, "")

    def _read(self, library: Path) -> None:
        tables = _output(["readelf", "--wide", "--dynamic", "--version-info", str(library)])
        for name in NEEDED.findall(tables):
            if NVIDIA.match(name):
                self.symbols.setdefault(name, {})
        versions: dict[str, tuple[str, str]] = {}
        owner = ""
        for line in tables.splitlines():
            if found := VERSIONS_OF.search(line):
                owner = found[1]
            elif found := VERSION.search(line):
                versions[found[2]] = (owner, found[1])
        symbols = _output(["readelf", "--wide", "--dyn-syms", str(library)])
        for section, symbol, number in SYMBOL.findall(symbols):
            if section != "UND":
                self._defined.add(symbol)
            elif not number:
                self._unowned.add(symbol)
            elif number in versions:
                owner, version = versions[number]
                if owner in self.symbols:
                    self.symbols[owner][symbol] = version

    def _owner(self, symbol: str) -> str | None:
        """The needed library whose prefix this symbol has; the longest: cublasLt is not cublas."""
        best, length = None, 0
        for library in self.symbols:
            name = library.removeprefix("lib").split(".")[0].removesuffix("_host")
            for prefix in PREFIXES.get(name, (name,)):
                if symbol.lower().startswith(prefix.lower()) and len(prefix) > length:
                    best, length = library, len(prefix)
        return best


def refuse_driver() -> None:
    """Refuses to go on where there is a GPU: a stand-in could be loaded in a real library's place.

    Raises:
        StubError: If there is.
    """
    ldconfig = shutil.which("ldconfig") or shutil.which("ldconfig", path="/sbin:/usr/sbin")
    known = _output([ldconfig, "-p"]) if ldconfig else ""
    signs = [str(path) for path in Path("/dev").glob("nvidia[0-9]*")]
    signs += re.findall(r"libcuda\.so\.1 .*=> (\S+)", known)
    if signs:
        raise StubError(
            f"this machine has an NVIDIA driver ({', '.join(signs)}), and the environment has "
            "libraries that take the place of CUDA's: make it on a machine or in a container "
            "without a GPU"
        )


def make(site: Path) -> dict[str, int]:
    """Makes the stand-ins for what is not there.

    Args:
        site: The site-packages folder that torch is in.

    Returns:
        The libraries made, each with the number of its symbols.

    Raises:
        StubError: If torch is not what is expected, or a program fails.
    """
    folder = site / "torch" / "lib"
    wanted = Wanted(sorted(folder.glob("*.so*"))).symbols
    if not wanted:
        raise StubError(
            f"no library in {folder} needs one of CUDA: is the torch there built for CUDA, as "
            "PyPI's is? Remove that folder's environment and run again with PyPI's torch"
        )
    made = {}
    for library, symbols in sorted(wanted.items()):
        bundled = (folder / library).exists()
        if not bundled and not any(site.glob(f"nvidia/*/lib/{library}")):
            _compile(folder / library, symbols)
            made[library] = len(symbols)
    return made


def _compile(library: Path, symbols: dict[str, str]) -> None:
    names = defaultdict(list)
    for symbol, version in sorted(symbols.items()):
        names[version].append(symbol)
    scripts = [f"{version} {{ {'; '.join(names[version])}; }};" for version in names if version]
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "stub.c"), Path(folder, "stub.map")
        functions = (f"int {symbol}(void) {{ return {NO_DEVICE}; }}\n" for symbol in symbols)
        source.write_text("".join(functions))
        script.write_text("\n".join(scripts))
        # Without the standard library, gcc needs no headers and no start files of a libc.
        command = ["gcc", "-shared", "-fPIC", "-nostdlib", "-fno-builtin", "-w", str(source)]
        command += [f"-Wl,-soname,{library.name}", "-o", str(library)]
        if scripts:
            command.append(f"-Wl,--version-script={script}")
        _output(command)


def _output(command: list[str]) -> str:
    """What a program prints, in English, for it is parsed."""
    done = subprocess.run(
        command,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise StubError(
            f"{' '.join(command)} failed with {done.returncode}: {done.stderr.strip()[-2000:]}\n"
            "See that gcc and binutils are installed and whole, then run again"
        )
    return done.stdout
