"""Adds up the tests of one run and prints "N passed, N failed, N skipped".

The folder given holds ctest.xml (one entry an executable), NAME.xml for each executable of
GoogleTest (one entry a test) and pytest.xml. An executable that failed without a failed test, or
without a report, has crashed: one failure.
"""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def count(report):
    """(passed, failed, skipped) of one JUnit or GoogleTest report."""
    passed = failed = skipped = 0
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif case.find("skipped") is not None or case.get("status") == "notrun":
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def count_ctest(folder):
    """As `count`, of every executable that CTest ran, by its own report where there is one."""
    totals = [0, 0, 0]
    for case in ElementTree.parse(folder / "ctest.xml").iter("testcase"):
        broken = case.get("status") == "fail" or case.find("failure") is not None
        report = folder / f"{case.get('name')}.xml"
        if report.exists():
            counts = count(report)
            if broken and counts[1] == 0:
                counts = (counts[0], 1, counts[2])
        elif broken:
            counts = (0, 1, 0)
        else:
            counts = (0, 0, 1) if case.find("skipped") is not None else (1, 0, 0)
        totals = [a + b for a, b in zip(totals, counts)]
    return tuple(totals)


def main(folder):
    counts = []
    if (folder / "ctest.xml").exists():
        counts.append(count_ctest(folder))
    if (folder / "pytest.xml").exists():
        counts.append(count(folder / "pytest.xml"))
    passed, failed, skipped = (sum(column) for column in zip((0, 0, 0), *counts))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if failed == 0 and passed + skipped > 0 else 1


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
