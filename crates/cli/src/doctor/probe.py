# Run by `maru doctor`: says what this Python has, as JSON, for Pythons of any age.
# torch is not imported: that takes seconds.
import json
import os
import sys

# What lies in the current folder is not installed.
sys.path[:] = [path for path in sys.path if path]


def version(package):
    try:
        from importlib import metadata

        return metadata.version(package)
    except Exception:
        return None


def maru():
    try:
        import maru

        return {"version": str(maru.__version__)}
    except Exception as error:
        missing = isinstance(error, ImportError) and error.name == "maru"
        return None if missing else {"error": "%s: %s" % (type(error).__name__, error)}


def torch_cuda():
    try:
        import runpy
        from importlib.util import find_spec

        path = os.path.join(os.path.dirname(find_spec("torch").origin), "version.py")
        return runpy.run_path(path).get("cuda")
    except Exception:
        return None


def has_libcuda():
    try:
        import ctypes

        ctypes.CDLL("libcuda.so.1")
        return True
    except Exception:
        return False


found = {
    "implementation": sys.implementation.name if hasattr(sys, "implementation") else "python",
    "version": list(sys.version_info[:3]),
    "executable": sys.executable,
    "maru": maru(),
    "lmcache": version("lmcache"),
    "torch": version("torch"),
    "torch_cuda": torch_cuda(),
    "has_libcuda": has_libcuda(),
}
print("\n" + json.dumps(found))
