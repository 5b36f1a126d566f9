from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.watermark import Watermark

offsets = st.lists(st.integers(0, 500), unique=True, max_size=60).map(sorted)


def test_nothing_delivered_leaves_the_start() -> None:
    assert Watermark(7).position == 7


def test_a_hole_in_the_offsets_does_not_hold_it() -> None:
    mark = Watermark(0)
    mark.deliver([0, 1, 5, 9])
    mark.settle([0, 1, 5])
    assert mark.position == 9  # nothing is between


def test_what_is_settled_above_an_open_offset_waits() -> None:
    mark = Watermark(0)
    mark.deliver([3, 4, 5])
    mark.settle([4, 5])
    assert (mark.position, mark.open, mark.end) == (3, ((3, 3),), 6)
    mark.settle([3])
    assert (mark.position, mark.open, mark.end) == (6, (), 6)


@given(offsets, st.data())
def test_never_above_an_open_offset_and_never_below_what_is_settled(delivered: list[int], data: st.DataObject) -> None:
    mark = Watermark(0)
    order = data.draw(st.permutations(delivered))
    step = data.draw(st.integers(1, 7))
    given_out = data.draw(st.integers(0, len(delivered)))
    mark.deliver(delivered[:given_out])
    known = set(delivered[:given_out])
    settled: set[int] = set()
    last = 0
    for begin in range(0, len(order), step):
        batch = [offset for offset in order[begin : begin + step] if offset in known]
        mark.settle(batch)
        settled.update(batch)
        if begin >= len(order) // 2 and given_out < len(delivered):
            mark.deliver(delivered[given_out:])
            known.update(delivered[given_out:])
            given_out = len(delivered)
        still_open = known - settled
        assert mark.position >= last
        last = mark.position
        assert all(offset >= mark.position for offset in still_open)
        below = {offset for offset in settled if not any(other < offset for other in still_open)}
        assert all(offset < mark.position for offset in below)


@given(offsets)
def test_all_settled_ends_behind_the_last(delivered: list[int]) -> None:
    mark = Watermark(0)
    mark.deliver(delivered)
    mark.settle(reversed(delivered))
    assert mark.position == (delivered[-1] + 1 if delivered else 0)
    assert mark.open == ()
