"""Walks the include graph: arrows point only down the floors, and torch stays where it may be."""

import re

import pytest
from cmake_helpers import ROOT

FLOORS = ["base", "algebra", "kernels", "ops", "nn", "models", "scale", "serve", "insight", "check", "arena", "cli"]
TORCH_FREE = {"base", "algebra", "kernels"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def includes(file):
    """(delimiter, path) of each include directive, comments left out."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", file.read_text(), flags=re.DOTALL)
    return INCLUDE.findall(text)


def is_torch(path):
    return path.split("/")[0] in {"torch", "ATen", "c10", "caffe2"}


def reaches_torch_modules(root, file, seen):
    """The chain of files through which `file` includes all of torch, or None."""
    for delimiter, path in includes(file):
        if path in ("torch/torch.h", "torch/extension.h", "torch/all.h"):
            return [path]
        header = root / path
        if delimiter == '"' and header.exists() and header not in seen:
            seen.add(header)
            chain = reaches_torch_modules(root, header, seen)
            if chain:
                return [path, *chain]
    return None


def mechanism_violations(name, file):
    """A mechanism says what is absorbed, never where: it sees no group, cache or executor, and it is short."""
    found = [f"{name}: a mechanism includes {path}" for _, path in includes(file)
             if re.search(r"c10d|cache|executor|regard/scale|regard/serve", path)]
    lines = len(file.read_text().splitlines())
    if file.suffix == ".cpp" and lines > 200:
        found.append(f"{name}: {lines} lines; a mechanism's source has at most 200")
    return found


def violations(root):
    """One line for each broken rule under root/regard."""
    found = []
    for file in sorted((root / "regard").rglob("*")):
        if file.suffix not in {".h", ".cpp", ".inl"}:
            continue
        name = file.relative_to(root)
        floor = name.parts[1]
        if floor not in FLOORS:
            found.append(f"{name}: no floor of this name")
            continue
        for delimiter, path in includes(file):
            if path.startswith("regard/"):
                other = path.split("/")[1]
                if other not in FLOORS or FLOORS.index(other) > FLOORS.index(floor):
                    found.append(f"{name}: the arrow to {path} goes up")
            if delimiter == '"' and not (path.startswith("regard/") and (root / path).exists()):
                found.append(f"{name}: {path} is not the full path of a header")
            if floor in TORCH_FREE and is_torch(path):
                found.append(f"{name}: {path} below ops")
            if path == "regex":
                found.append(f"{name}: <regex> costs seconds of compile time")
            # nlohmann/json_fwd.hpp only declares.
            if file.suffix == ".h" and path in ("iostream", "nlohmann/json.hpp"):
                found.append(f"{name}: <{path}> in a header")
        if floor == "nn" and len(name.parts) > 3:  # regard/nn/FAMILY/: mechanisms
            found += mechanism_violations(name, file)
        if floor == "nn" and file.stem.split("_")[-1] != "module":
            chain = reaches_torch_modules(root, file, {file})
            if chain:
                found.append(f"{name}: a mechanism includes {' -> '.join(chain)}")
    return found


def test_the_house():
    assert len(list((ROOT / "regard").rglob("*.h"))) > 10
    assert violations(ROOT) == []


def test_kernel_library_is_found_free_of_torch_through_its_headers():
    """A header below ops could only bring torch through a header above, which the floors forbid."""
    for floor in sorted(TORCH_FREE):
        for file in (ROOT / "regard" / floor).rglob("*.[hc]*"):
            assert not [path for _, path in includes(file) if is_torch(path)], file


@pytest.mark.parametrize("file, text, message", [
    ("base/a.h", '#include "regard/ops/b.h"', "the arrow to regard/ops/b.h goes up"),
    ("kernels/cpu/a.cpp", "#include <ATen/ATen.h>", "ATen/ATen.h below ops"),
    ("algebra/a.cpp", "  #  include <c10/util/Half.h>", "c10/util/Half.h below ops"),
    ("nn/dense/a.cpp", "#include <torch/torch.h>", "a mechanism includes torch/torch.h"),
    ("nn/dense/a.cpp", '#include "regard/ops/c.h"', "regard/ops/c.h -> torch/torch.h"),
    ("nn/dense/a.cpp", '#include "regard/ops/executor.h"', "a mechanism includes regard/ops/executor.h"),
    ("nn/dense/a.cpp", "#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>", "a mechanism includes torch/csrc"),
    ("nn/dense/a.cpp", "\n" * 201, "202 lines; a mechanism's source has at most 200"),
    ("ops/a.cpp", "#include <regex>", "<regex>"),
    ("ops/a.h", "#include <nlohmann/json.hpp>", "<nlohmann/json.hpp> in a header"),
    ("ops/a.h", "#include <iostream>", "<iostream> in a header"),
    ("ops/a.cpp", '#include "b.h"', "b.h is not the full path"),
    ("elsewhere/a.h", "", "no floor"),
])
def test_the_walk_sees(tmp_path, file, text, message):
    for name, content in {"ops/b.h": "", "ops/c.h": "#include <torch/torch.h>", "ops/executor.h": "", file: text}.items():
        path = tmp_path / "regard" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert any(message in line for line in violations(tmp_path)), violations(tmp_path)


def test_the_walk_allows(tmp_path):
    files = {"base/a.h": "#include <string>", "nn/pooling/b.cpp": '#include <ATen/ATen.h>\n#include "regard/base/a.h"',
             "arena/c.cpp": "#include <torch/torch.h>\n#include <nlohmann/json.hpp>",
             "base/d.cpp": "// #include <ATen/ATen.h>\n/* #include <torch/torch.h> */"}
    for name, content in files.items():
        path = tmp_path / "regard" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert violations(tmp_path) == []
