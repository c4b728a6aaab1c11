"""Touching one mechanism's source and building again stays quick."""

import os
import time

import pytest
from cmake_helpers import ROOT, run

LIMIT_SECONDS = 20


@pytest.mark.slow
def test_touching_one_mechanism_rebuilds_quickly(build_tree):
    sources = sorted((ROOT / "regard" / "nn").glob("*/*.cpp"))
    assert sources, "no mechanism found"
    run("cmake", "--build", build_tree)
    source = max(sources, key=lambda path: path.stat().st_size)
    os.utime(source)
    # Without ccache, as after a real edit.
    env = dict(os.environ, CCACHE_DISABLE="1")
    begin = time.monotonic()
    output = run("cmake", "--build", build_tree, env=env)
    seconds = time.monotonic() - begin
    assert "Building CXX object" in output and source.name in output, output
    assert seconds < LIMIT_SECONDS, f"{source.name}: {seconds:.1f} s\n{output}"
