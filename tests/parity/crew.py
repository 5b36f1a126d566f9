"""Connector files in, one process out that runs the native relay of each, in threads: a process for each costs more.

``python crew.py FILE…`` is that process.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from relays import RelayProcess, until


class Crew(RelayProcess):
    """Native relays of several files."""

    def __init__(self, files: Sequence[Path], environment: Mapping[str, str]) -> None:
        self._count = len(files)
        self._log = files[0].with_suffix(".crew.log")
        with self._log.open("wb") as output:
            command = [sys.executable, __file__, *map(str, files)]
            env = {**environment, "PYTHONPATH": str(Path(__file__).parents[1])}
            self.process = subprocess.Popen(command, env=env, stderr=output, stdout=output)

    def reading(self, timeout_s: float = 60) -> Crew:
        """Wait until all read their slots."""

        def all_read() -> bool:
            return self.actions().count("slot.read") >= self._count or self.process.poll() is not None

        until(all_read, f"all {self._count} relays read", timeout_s)
        assert self.process.poll() is None, self.log
        return self


def main() -> None:
    """Run the relays of all files until one of them cannot go on."""
    from pipeline import log
    from pipeline.config import Settings
    from pipeline.errors import PipelineError
    from pipeline.runtime.relay import run_relay

    log.configure("info")
    settings = Settings.load()
    end = threading.Event()

    def run(file: Path) -> None:
        try:
            run_relay(file, settings, until=end)
        except PipelineError as error:
            sys.stderr.write(f"{file.stem}: {error}\n")
            end.set()

    threads = [threading.Thread(target=run, args=(Path(name),)) for name in sys.argv[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
