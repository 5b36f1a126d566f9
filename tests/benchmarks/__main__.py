"""All benchmarks, one after another, and their figures as one Markdown table.

    python -m tests.benchmarks [--only NAME …] [--quick] [--stack DIR] [--python312 FILE] [--readme]

Servers are those of the settings (PIPELINE_POSTGRES__DSN, PIPELINE_KAFKA__BOOTSTRAP_SERVERS, PIPELINE_CONNECT__URL), or
the local stack in DIR, or one in a new folder that is deleted in the end. ``--quick`` tries whether all of it works:
its figures say nothing. ``--readme`` writes the table into README.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks import table

NAMES = ("debezium", "growth", "writers", "jobs", "path", "worker", "peers")
ALONE = ("relay",)
"""Only where it is asked for: part of ``debezium``."""
README = Path(__file__).with_name("README.md")


@contextmanager
def servers(stack: Path | None) -> Iterator[dict[str, str]]:
    """Run servers and give the settings that name them."""
    if stack is None and "PIPELINE_KAFKA__BOOTSTRAP_SERVERS" in os.environ:
        yield {}
        return
    from pipeline.local import LocalStack

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        local = LocalStack(stack or Path(folder) / "stack")
        print(f"starting servers in {local.data}", flush=True)
        found = local.up(connect=True)
        try:
            yield {
                "PIPELINE_POSTGRES__DSN": found.postgres_dsn,
                "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": found.kafka,
                "PIPELINE_CONNECT__URL": found.connect or "",
            }
        finally:
            if stack is None:
                local.down(delete=True)


def shown(only: Sequence[str], *, quick: bool) -> str:
    """Return the command for the table: without what is of this machine, its paths."""
    options = [*(["--only", *only] if tuple(only) != NAMES else []), *(["--quick"] if quick else [])]
    return f'make bench BENCH="{" ".join(options)}"' if options else "make bench"


def main() -> int:
    """Run what is named, or all; print the table. 1 where one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=(*NAMES, *ALONE), default=NAMES, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--stack", type=Path, help="the local stack's folder")
    parser.add_argument("--python312", help="for peers that need Python 3.12 (else: python3.12)")
    parser.add_argument("--readme", action="store_true", help="write the table into tests/benchmarks/README.md")
    given = parser.parse_args()
    begun, load = time.monotonic(), os.getloadavg()[0]
    parts: list[tuple[str, list[table.Row]]] = []
    failed: list[str] = []
    with servers(given.stack) as settings, tempfile.TemporaryDirectory() as folder:
        for name in given.only:
            command = [sys.executable, "-m", f"tests.benchmarks.{name}", *(["--quick"] if given.quick else [])]
            command += ["--python312", given.python312] if name == "peers" and given.python312 else []
            file, started = Path(folder) / name, time.monotonic()
            print(f"── {name}", flush=True)
            if subprocess.run(command, env={**os.environ, **settings, table.FILE: str(file)}).returncode:
                failed.append(name)
            print(f"── {name}: {time.monotonic() - started:.0f} s", flush=True)
            parts.append((name, table.read(file)))
    minutes = (time.monotonic() - begun) / 60
    made = table.markdown(parts, load=load, minutes=minutes, command=shown(given.only, quick=given.quick))
    print(f"\n{made}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    elif given.readme:
        README.write_text(table.replaced(README.read_text(), made))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
