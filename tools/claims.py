"""What stands behind each claim of the specification's conclusion: inventory rows and the tests that check them, as Markdown.

    python tools/claims.py [--junit results.xml]

With the results of a test run (``pytest --junit-xml``), each test also says whether it passed.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

ROWS = Path(__file__).parents[1] / "tests" / "inventory" / "rows"

CLAIMS: dict[str, tuple[str, ...]] = {
    "Correct by construction: shapes and types are checked before anything runs": (
        "A002", "A006", "A009", "A016", "A022", "A023", "A024", "A025", "A027", "A028", "A034", "A036", "A040", "A044",
        "J001", "J002", "J003", "J004", "J005", "J006", "J007", "J008", "J009"),
    "Efficient by default: fused, specialised where asked, one program for every size": (
        "A004", "A018", "A025", "A069", "B026", "I031", "I038"),
    "Portable across hardware: one source, several levels and targets": ("A014", "A068", "A072", "I017", "I021", "I034", "I035", "I036"),
    "Production-ready: effects, determinism, errors, interoperation": ("A041", "A045", "A047", "A049", "A065", "A078", "C011"),
}
"""Claim -> the rows whose checks it rests on; rows of groups that have no table yet are left out of the report."""


def outcomes(junit: Path) -> dict[str, bool]:
    """``file::test`` (without parameters) -> whether every case of it passed."""
    passed: dict[str, bool] = {}
    for case in ET.parse(junit).getroot().iter("testcase"):
        file = case.get("classname", "").removeprefix("tests.").replace(".", "/") + ".py"
        name = f"{file}::{case.get('name', '').partition('[')[0]}"
        good = not any(child.tag in ("failure", "error") for child in case)
        passed[name] = passed.get(name, True) and good
    return passed


def report(tables: Mapping[str, list[str] | str], passed: Mapping[str, bool] | None = None) -> str:
    """The report: a section a claim, a line a row."""
    lines: list[str] = []
    for claim, rows in CLAIMS.items():
        lines += [f"## {claim}", ""]
        for row in rows:
            tests = tables.get(row)
            if isinstance(tests, str):
                lines.append(f"* {row}: {tests}")
            elif tests:
                marks = ["" if passed is None else {True: " (passed)", False: " (FAILED)"}.get(passed.get(t), " (not run)") for t in tests]
                lines.append(f"* {row}: " + ", ".join(f"`{t}`{m}" for t, m in zip(tests, marks, strict=True)))
        lines.append("")
    return "\n".join(lines)


def tables() -> dict[str, list[str] | str]:
    """Every row of every table."""
    out: dict[str, list[str] | str] = {}
    for path in sorted(ROWS.glob("*.toml")):
        out |= tomllib.loads(path.read_text())
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--junit", type=Path, help="results of a test run")
    args = parser.parse_args(argv)
    passed = None if args.junit is None else outcomes(args.junit)
    print(report(tables(), passed))
    return 0 if passed is None or False not in passed.values() else 1


if __name__ == "__main__":
    sys.exit(main())
