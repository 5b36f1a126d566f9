"""Binary forms of times, of any value that PostgreSQL can send. Debezium's side of it is in tests/parity."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from pipeline.connect.binary import FUNCTIONS
from pipeline.connect.columns import Modes, column_type
from pipeline.connect.row import of_variable

MODES = ("adaptive", "adaptive_time_microseconds", "microseconds", "nanoseconds", "connect", "isostring")


def evaluated(text: str, data: bytes) -> object:
    return eval(of_variable(text, "data"), {**FUNCTIONS, "data": data})


DAYS = st.integers(-2_451_545, 2_145_031_948) | st.sampled_from([-(2**31), 2**31 - 1])  # 4713 BC to 5874897; infinity


@given(st.integers(-(2**63), 2**63 - 1), DAYS)
def test_any_moment_has_a_form_that_java_holds(since_us: int, since_days: int) -> None:
    for mode, oid, modifier in product(MODES, (1082, 1083, 1114, 1184), (-1, 0, 3)):
        data = since_days.to_bytes(4, "big", signed=True) if oid == 1082 else since_us.to_bytes(8, "big", signed=True)
        if oid == 1083:
            data = (since_us % 86_400_000_001).to_bytes(8, "big")
        kind = column_type(oid, modifier, Modes(time=mode))
        assert evaluated(kind.json, data) is not None
        if kind.schema and kind.schema.type.startswith("int"):
            bits = int(kind.schema.type[3:])
            assert -(2 ** (bits - 1)) <= int(str(evaluated(kind.json, data))) < 2 ** (bits - 1)


@given(st.datetimes(timezones=st.just(UTC)))
def test_dates_and_times_are_those_of_the_calendar(at: datetime) -> None:
    since = at - datetime(2000, 1, 1, tzinfo=UTC)
    data = (since // timedelta(microseconds=1)).to_bytes(8, "big", signed=True)
    text = evaluated(column_type(1114, -1, Modes(time="isostring")).text, data)
    assert datetime.fromisoformat(str(text)) == at
    day = since.days.to_bytes(4, "big", signed=True)
    assert evaluated(column_type(1082, -1, Modes(time="isostring")).text, day) == f"{at.date()}Z"
    assert evaluated(column_type(1082, -1).text, day) == str((at.date() - date(1970, 1, 1)).days)
