"""Run the benchmarks, one after another: ``python -m tests.benchmarks [NAME …]``, with a server stack of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py"))


def main() -> int:
    wanted = sys.argv[1:] or NAMES
    unknown = set(wanted) - set(NAMES)
    if unknown:
        print(f"no such benchmark: {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 1
    failed = [name for name in wanted if subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"]).returncode]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


sys.exit(main())
