from __future__ import annotations

from prometheus_client import CollectorRegistry

from pipeline.metrics import PrometheusMeter
from pipeline.progress import Progress
from pipeline.worker.delivery import Assigned
from pipeline.worker.gauges import Gauges


def test_the_lag_of_a_topic_that_was_taken_away_is_another_workers_to_tell() -> None:
    registry = CollectorRegistry()
    gauges = Gauges("g", PrometheusMeter(registry), [])
    mine = {("orders", 0): Assigned("orders", 0, Progress(4, 4), None)}
    for assigned, lag in ((mine, 6), ({}, 0), (mine, 6)):
        gauges.report(assigned, {("orders", 0): 10}, in_flight=0, oldest_s=0, held=0)
        assert registry.get_sample_value("pipeline_lag_records", {"group": "g", "topic": "orders"}) == lag
