"""A short run of what ``make fuzz`` does at length."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name.replace(" ", "-"))
def test_wrong_bytes_raise_nothing_but_the_stated_errors(target: Target) -> None:
    result = fuzz(target, 20 * target.share, seed=20_260_101)
    assert result.broken == []
    assert len(result.said) > 1 or not target.allowed, "all inputs were answered alike: nothing was tried"


def test_what_should_not_come_is_told_with_its_input() -> None:
    broken = Target("broken", 1, lambda chance: chance.randbytes(2), lambda data: [][1], (ValueError,))
    result = fuzz(broken, 1, seed=1)
    assert [why for _, why in result.broken] == ["IndexError: list index out of range"]
    assert result.said == {"BROKEN IndexError": 1}
