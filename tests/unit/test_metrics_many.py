from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from pipeline.metrics import LATENCY_S, PrometheusMeter

values = st.lists(st.floats(0, 10_000) | st.sampled_from(LATENCY_S), min_size=1, max_size=50)


def told(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "handler_seconds" in line and "_created" not in line and "_sum" not in line]


@given(values)
def test_many_values_at_once_count_as_one_by_one(found: list[float]) -> None:
    labels = {"group": "g", "type": "t"}
    one, many = CollectorRegistry(), CollectorRegistry()
    singly, together = PrometheusMeter(one), PrometheusMeter(many)
    for value in found:
        singly.observe("pipeline_handler_seconds", value, **labels)
    together.observe_many("pipeline_handler_seconds", found, **labels)
    assert told(many) == told(one)


def test_what_a_process_does_not_count_it_does_not_export() -> None:
    registry = CollectorRegistry()
    meter = PrometheusMeter(registry)
    assert generate_latest(registry) == b""
    meter.add("pipeline_scheduler_moved_total", 0)
    assert b"pipeline_scheduler_moved_total 0.0" in generate_latest(registry)
    with pytest.raises(KeyError):
        meter.set("pipeline_nothing", 1)
    with pytest.raises(KeyError):
        meter.set("pipeline_scheduler_moved_total", 1)
