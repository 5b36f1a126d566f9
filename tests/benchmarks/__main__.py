"""All benchmarks, one after another, and their figures as one Markdown table.

    python -m tests.benchmarks [NAME …] [--quick] [--stack DIR]

Servers are those of the settings (PIPELINE_POSTGRES__DSN, PIPELINE_KAFKA__BOOTSTRAP_SERVERS, PIPELINE_CONNECT__URL), or
the local stack in DIR, or one in a new folder that is deleted in the end. ``--quick`` tries whether all of it works:
its figures say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks import table

NAMES = ("debezium", "growth", "writers", "jobs", "path", "worker", "peers")
ALONE = ("relay",)
"""Only where it is asked for: part of ``debezium``."""


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


def main() -> int:
    """Run what is named, or all; print the table. 1 where one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join((*NAMES, *ALONE)))
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--stack", type=Path, help="the local stack's folder")
    given = parser.parse_args()
    unknown = set(given.names) - {*NAMES, *ALONE}
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are: {', '.join((*NAMES, *ALONE))}")
    begun, load = time.monotonic(), os.getloadavg()[0]
    rows: list[list[str]] = []
    commands: list[str] = []
    failed: list[str] = []
    with servers(given.stack) as settings, tempfile.TemporaryDirectory() as folder:
        for name in given.names or NAMES:
            file = Path(folder) / name
            command = ["-m", f"tests.benchmarks.{name}", *(["--quick"] if given.quick else [])]
            print(f"── python {' '.join(command)}", flush=True)
            if subprocess.run(
                [sys.executable, *command], env={**os.environ, **settings, table.FILE: str(file)}
            ).returncode:
                failed.append(name)
            found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
            rows += found
            commands += [f"python {' '.join(command)}"] * len(found)
    print(f"\n{table.markdown(rows, commands)}\n")
    minutes = (time.monotonic() - begun) / 60
    print(f"{table.machine()}; load {load:.1f} before it began; {minutes:.0f} minutes; {time.strftime('%Y-%m-%d')}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
