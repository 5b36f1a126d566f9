"""``python -m tests.faults``: run a campaign, print a line a fault, exit with 1 when a promise was broken."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.faults.campaign import FAULTS, Plan, run
from tests.faults.report import lines, markdown, merged, put


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="how long to inject faults (default 120)")
    parser.add_argument("--faults", type=int, default=0, help="end after so many")
    parser.add_argument("--seed", type=int, default=1, help="the same faults in the same order (default 1)")
    parser.add_argument("--only", action="append", default=[], metavar="KIND", help="part of a kind's name; repeatable")
    parser.add_argument("--rate", type=float, default=25, help="transactions a second (default 25)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--double", type=float, default=0.15, help="share of rounds with two faults (default 0.15)")
    parser.add_argument("--list", action="store_true", help="name all kinds and end")
    parser.add_argument("--keep", action="store_true", help="keep logs when all is well, too")
    parser.add_argument("--report", type=Path, help="write the figures into this Markdown page")
    parser.add_argument("--merge", type=Path, nargs="+", help="only make the report, of these results")
    parser.add_argument("--json", type=Path, help="write the result there too")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    given = parser.parse_args()
    if given.list:
        for kind, fault in FAULTS.items():
            print(f"{kind}: {(fault.__doc__ or '').splitlines()[0]}")
        return 0
    if given.merge:
        section = markdown(merged([json.loads(path.read_text()) for path in given.merge]))
        put(given.report, section) if given.report else print(section)
        return 0
    kinds = tuple(kind for kind in FAULTS if not given.only or any(word in kind for word in given.only))
    if not kinds:
        parser.error(f"--only {', '.join(given.only)}: no such kind; see --list")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is stopped then, too
    plan = Plan(given.seed, given.seconds, given.faults, kinds, given.rate, given.workers, given.double)
    folder = Path(tempfile.mkdtemp(prefix="pipeline-faults-"))
    folder.chmod(0o711)  # as root: PostgreSQL's user has to pass
    result = None
    try:
        result = run(plan, folder, lambda text: print(text, file=sys.stderr, flush=True))
    finally:
        if result is not None and not result.violations and not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"logs and handlers' records are in {folder}", file=sys.stderr)
    text = json.dumps(result.as_dict(), indent=2)
    if given.json:
        given.json.write_text(text + "\n")
    if given.report:
        put(given.report, markdown(result.as_dict()))
    print(text if given.output == "json" else "\n".join(lines(result.as_dict())))
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
