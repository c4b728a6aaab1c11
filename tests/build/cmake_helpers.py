"""Helpers of the tests that run CMake."""

import os
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*command, cwd=None, env=None, expect=0):
    """Runs a command; the output of an unexpected exit status becomes the test's message."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (done.returncode == 0) == (expect == 0), f"{command} gave {done.returncode}:\n{done.stdout}"
    return done.stdout


def clean_environment(**changes):
    """The environment without what leads to the build tree, so that an installed Regard stands alone."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("REGARD_")}
    env.update(changes)
    return env


def build_project(source, build, prefix, *options, expect=0):
    """Configures and builds a project against the install tree at prefix."""
    launcher = shutil.which("ccache")
    if launcher:
        options += (f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}",)
    output = run("cmake", "-G", "Ninja", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}",
                 *options, env=clean_environment(), expect=expect)
    if expect == 0:
        output += run("cmake", "--build", build, env=clean_environment())
    return output
