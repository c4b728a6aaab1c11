"""Finds libregard.so and loads it into torch, once."""

from __future__ import annotations

import os
import pathlib

import torch

_MINIMUM_TORCH = (2, 11)
_NAME = "libregard.so"


def candidates() -> list[pathlib.Path]:
    """Where the library may lie, in the order in which it is looked for.

    `REGARD_LIBRARY`, when set, is the only candidate; otherwise the installed package, then the release build of the
    checkout that this file belongs to.
    """
    named = os.environ.get("REGARD_LIBRARY")
    if named:
        return [pathlib.Path(named)]
    package = pathlib.Path(__file__).resolve().parent
    found = [package / "lib" / _NAME]
    checkout = package.parent.parent
    if (checkout / "CMakeLists.txt").exists():
        release = checkout / "build" / "release"
        found.append(release / "lib" / _NAME)
        found.extend(sorted(release.glob(f"**/{_NAME}")))
    return found


def minor(version: str) -> tuple[int, ...]:
    """(2, 13) of "2.13.0+cpu": torch keeps its C++ interface within one minor version only."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


def check_built_for(built: str, running: str, path: pathlib.Path) -> None:
    """ImportError when the library was built for another minor version of torch than the one that runs."""
    if minor(built) != minor(running):
        raise ImportError(
            f"[regard] expected a library built against torch {running}; found {path}, built against torch {built}: "
            "build it again with this torch"
        )


def load() -> pathlib.Path:
    """Loads the library and returns its path; ImportError says where it was looked for."""
    if minor(torch.__version__) < _MINIMUM_TORCH:
        raise ImportError(f"[regard] expected torch >= 2.11; found torch {torch.__version__}")
    places = candidates()
    for path in places:
        if path.is_file():
            try:
                torch.ops.load_library(str(path))
            except OSError as error:
                raise ImportError(
                    f"[regard] expected a library built against torch {torch.__version__}; found {path}, which does "
                    f"not load: {error}"
                ) from error
            check_built_for(torch.ops.regard.built_with_torch(), torch.__version__, path)
            return path
    looked = ", ".join(dict.fromkeys(str(path) for path in places))
    raise ImportError(
        f"[regard] expected {_NAME}; found none at {looked}. Build it with scripts/test or `pip install "
        "--no-build-isolation .`, or name it in REGARD_LIBRARY"
    )


PATH = load()
