"""The set-up finds what is there, names what is not, and the totals count every kind of report."""

import os
import re
import shutil
import subprocess
import sys

from cmake_helpers import ROOT, clean_environment, run


def script(code, **variables):
    """Runs bash code after the functions of scripts/setup have been read."""
    done = subprocess.run(["bash", "-c", f'source "{ROOT}/scripts/setup"; {code}'], text=True,
                          env=clean_environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


def refusing_apt(folder):
    """A PATH on which apt-get and sudo leave a mark when they are called."""
    for name in ("apt-get", "sudo"):
        (folder / name).write_text(f"#!/bin/sh\necho CALLED {name} \"$@\"; exit 3\n")
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_apt_is_left_alone_when_everything_is_there(tmp_path):
    code, output = script("echo ready", PATH=refusing_apt(tmp_path), REGARD_PYTHON=sys.executable)
    assert (code, output) == (0, "ready\n")


def test_missing_packages_are_named(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "grep", "dirname", "basename", "id", "env", "ccache", "cmake", "c++", "as", "awk",
                 "nproc", "printf", "python3"):
        (tools / name).symlink_to(os.path.realpath(shutil.which(name)))
    refusing_apt(tools)
    code, output = script("echo ready", PATH=str(tools), REGARD_PYTHON=sys.executable)
    assert code != 0
    assert "Installing packages: ninja-build\n" in output
    assert re.search(r"CALLED \S+ .*update", output)
    assert "ready" not in output


def test_jobs_follow_cores_and_memory():
    assert script("regard_find_jobs; echo $regard_jobs", REGARD_JOBS="7", REGARD_PYTHON=sys.executable)[1] == "7\n"
    jobs = int(script("echo $regard_jobs", REGARD_PYTHON=sys.executable)[1])
    assert 1 <= jobs <= os.cpu_count()


def test_python_of_the_user_is_taken_unchanged():
    code, output = script("regard_find_python torch; echo $regard_python", REGARD_PYTHON=sys.executable)
    assert (code, output.strip()) == (0, sys.executable)


def test_python_without_torch_is_refused(tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = str(tmp_path / "venv" / "bin" / "python")
    code, output = script("regard_find_python torch numpy", REGARD_PYTHON=python)
    assert code != 0
    assert f"expected modules torch numpy in REGARD_PYTHON={python}; found none" in output


def test_python_that_does_not_exist_is_refused():
    code, output = script("regard_find_python torch", REGARD_PYTHON="/nonexistent/python")
    assert code != 0
    assert "expected REGARD_PYTHON to name a Python interpreter; found '/nonexistent/python'" in output


def test_scripts_name_no_host():
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run", ROOT / "requirements.txt", ROOT / "pyproject.toml"]:
        if path.is_file():
            assert not re.search(r"https?://|pypi\.org|pytorch\.org", path.read_text()), path


CTEST = """<testsuite>
<testcase name="test_good" status="run"/>
<testcase name="test_leaks" status="fail"><failure message=""/></testcase>
<testcase name="test_crashes" status="fail"><failure message=""/></testcase>
<testcase name="plain" status="run"/>
</testsuite>"""
GOOD = """<testsuites><testsuite>
<testcase name="a" status="run" result="completed"/>
<testcase name="b" status="run" result="skipped"><skipped message="no"/></testcase>
<testcase name="c" status="notrun" result="suppressed"/>
</testsuite></testsuites>"""
LEAKS = '<testsuites><testsuite><testcase name="a" status="run"/></testsuite></testsuites>'
PYTEST = """<testsuites><testsuite>
<testcase name="a"/><testcase name="b"><skipped/></testcase>
<testcase name="c"><failure/></testcase><testcase name="d"><error/></testcase>
</testsuite></testsuites>"""


def totals(folder, expect=0, **reports):
    for name, text in reports.items():
        (folder / f"{name}.xml").write_text(text)
    return run(sys.executable, ROOT / "scripts" / "totals.py", folder, expect=expect)


def test_totals_add_up(tmp_path):
    output = totals(tmp_path, ctest=CTEST, test_good=GOOD, test_leaks=LEAKS, pytest=PYTEST, expect=1)
    # passed: good.a, leaks.a, plain, pytest.a; failed: the leak, the crash, pytest.c, pytest.d.
    assert output == "4 passed, 4 failed, 3 skipped\n"


def test_totals_of_a_good_run(tmp_path):
    ctest = '<testsuite><testcase name="test_good" status="run"/></testsuite>'
    assert totals(tmp_path, ctest=ctest, test_good=GOOD) == "1 passed, 0 failed, 2 skipped\n"


def test_no_test_at_all_is_a_failure(tmp_path):
    assert totals(tmp_path, expect=1) == "0 passed, 0 failed, 0 skipped\n"
