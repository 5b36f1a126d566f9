"""Names of topics and groups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.topics import Names, TopicSpec, check_name, dead_letters, delay_label, retry_tier

NAMES = Names("shop", "test.")


def test_all_names_have_the_prefix_and_only_ours_the_application() -> None:
    assert NAMES.events("order") == "test.outbox.event.order"
    assert NAMES.jobs("email") == "test.shop.jobs.email"
    assert NAMES.group("billing") == "test.shop.billing"
    assert NAMES.workers == "test.shop.pipeline.workers"
    assert retry_tier(NAMES.group("billing"), 20) == "test.shop.billing.retry.20s"
    assert dead_letters("outbox") == "outbox.dlq"


@pytest.mark.parametrize(("delay_s", "label"), [(0, "0s"), (20.0, "20s"), (0.5, "500ms"), (1.25, "1250ms")])
def test_a_delay_has_one_label(delay_s: float, label: str) -> None:
    assert delay_label(delay_s) == label


@pytest.mark.parametrize("name", ["", "A", "a_b", "a.b", "ä", "a" * 61, "a\n", " a"])
def test_a_name_outside_the_rule_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        check_name(name)


@given(st.from_regex(r"[a-z0-9-]{1,60}", fullmatch=True))
def test_a_name_within_the_rule_is_kept(name: str) -> None:
    assert check_name(name) == name


def test_kafkas_longest_name_is_kept_to() -> None:
    assert TopicSpec("a" * 249, 1).name
    with pytest.raises(ConfigError, match="longer than 249"):
        TopicSpec("a" * 250, 1)
