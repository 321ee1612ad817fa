"""Plants mistakes in the package, one at a time, and checks that the tests that run by default catch them.

    python tests/mutations.py [kernels/augment.py ...]

Each mistake is a line of a file and its replacement; `MUTATIONS` at the end of a test file holds those that its tests
catch. The files are restored whatever happens. The exit code is 1 if a mistake was missed.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def planted() -> list[tuple[str, Path, list[tuple[str, str]]]]:
    """File of the package, test file and mistakes of each `MUTATIONS` in tests/test_*.py."""
    found = []
    for test in sorted(ROOT.glob("tests/test_*.py")):
        for statement in ast.parse(test.read_text()).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "MUTATIONS":
                found += [(name, test, each) for name, each in ast.literal_eval(statement.value).items()]
    return found


def caught(path: Path, test: Path, original: str, old: str, new: str) -> bool:
    """Whether `test` fails with `old` replaced by `new` in the file `path`."""
    if original.count(old) < 1 or old == new:
        raise SystemExit(f"{path.name}: no such line any more: {old}")
    path.write_text(original.replace(old, new, 1))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:benchmark", str(test)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ))
    finally:
        path.write_text(original)
    return done.returncode == 1 or done.returncode < 0  # tests failed, or the process died of reading beyond memory


def main(chosen: list[str]) -> int:
    """Plant all mistakes of the chosen files (none: all); 1 if one was not seen."""
    missed = []
    for name, test, mutations in planted():
        if chosen and name not in chosen:
            continue
        path = ROOT / name
        original = path.read_text()
        for old, new in mutations:
            seen = caught(path, test, original, old, new)
            print("caught" if seen else "MISSED", name, new, sep="\t", flush=True)
            missed += [] if seen else [new]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
