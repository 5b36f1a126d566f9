"""What a signal ends though it does not end by itself."""

from __future__ import annotations

import signal
import subprocess
import sys

HANGS = """
import sys, time
from pipeline.cli.ending import ending
with ending(float(sys.argv[1])) as (until, at_once):
    print("begun", flush=True)
    time.sleep(60)
"""


def test_what_does_not_end_in_time_is_ended() -> None:
    command = [sys.executable, "-c", HANGS, "0.3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline() == b"begun\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 2
        finally:
            process.kill()
        assert b"not ended in time" in process.stderr.read()
