"""Lets a plain `pytest` find the Python package and the library of the build tree."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent
BUILD = pathlib.Path(os.environ.setdefault("REGARD_BUILD_DIR", str(ROOT / "build" / "release")))

sys.path.insert(0, str(ROOT / "python"))
# Subprocesses of the tests see the same package and library.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]))
if (BUILD / "lib" / "libregard.so").exists():
    os.environ.setdefault("REGARD_LIBRARY", str(BUILD / "lib" / "libregard.so"))
