"""What a test measured in, a line at the end of pytest's output out, whether it passed or not, in which process ever.

What passing tests print is swallowed, and with pytest-xdist it cannot be let through: but properties of a test travel
with its report.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["Figure", "figure", "pytest_terminal_summary"]

Figure = Callable[[str], None]

_FIGURE = "figure"


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """``figure("takeover: 0 lost, 12 duplicates")`` has the text told at the end, after the test's name."""
    return lambda text: request.node.user_properties.append((_FIGURE, text))


def pytest_terminal_summary(terminalreporter: Any) -> None:  # pytest's own has no public type
    told: dict[str, list[str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                found = [text for name, text in report.user_properties if name == _FIGURE]
                told |= {report.nodeid: found} if found else {}
    if told:
        terminalreporter.section("figures")
    for test, texts in sorted(told.items()):
        for line in (test.rpartition("/")[2], *(f"  {text}" for text in texts)):
            terminalreporter.write_line(line)
