from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.progress import MOST_BYTES, Mark, Progress, Suspicion
from pipeline.watermark import Watermark


def runs_of(offsets: list[int]) -> tuple[tuple[int, int], ...]:
    mark = Watermark(0)
    mark.deliver(offsets)
    return mark.open


@st.composite
def progresses(draw: st.DrawFn, most: int = 60, spread: int = 1 << 40) -> Progress:
    offset = draw(st.integers(0, 1 << 50))
    open_ = sorted(draw(st.sets(st.integers(offset, offset + spread), max_size=most)))
    if open_:
        offset = open_[0]
    end = (open_[-1] if open_ else offset) + draw(st.integers(1, 1000)) if open_ else offset
    some, many = st.sampled_from(open_ or [0]), 20 if open_ else 0
    return Progress(
        offset,
        end,
        runs_of(open_),
        draw(st.booleans()),
        draw(st.sampled_from([0, offset + 7, end + 10_000])),
        draw(st.frozensets(some, max_size=many)),
        draw(st.dictionaries(some, st.builds(Suspicion, st.integers(0, 15), st.integers(0, 15)), max_size=many)),
        draw(st.none() | some) if open_ else None,
    )


@given(progresses())
def test_what_is_written_is_read_again(progress: Progress) -> None:
    mark = progress.mark()
    assert mark.offset == progress.offset
    read = Progress.read(mark)
    if mark.metadata:
        assert read == progress
    else:
        assert (read.open, read.in_hand, read.suspects) == ((), False, {})


def test_a_partition_at_rest_with_nothing_beyond_needs_no_text() -> None:
    assert Progress(17, 17).mark() == Mark(17)


@pytest.mark.parametrize("step", [2, 3, 1000, 1 << 30])
def test_what_does_not_fit_is_repeated_and_never_skipped(step: int) -> None:
    open_ = [7 + n * step for n in range(20_000)]
    progress = Progress(7, open_[-1] + 5, runs_of(open_), in_hand=True)
    mark = progress.mark()
    assert len(mark.metadata) <= MOST_BYTES
    read = Progress.read(mark)
    assert read.in_hand
    assert 7 < read.end < progress.end
    assert not any(read.settled(offset) for offset in open_)
    known = sum(read.settled(offset + 1) for offset in open_)
    assert known > 300  # and that is used


def test_more_suspects_than_fit_leave_the_word_of_who_has_the_partition() -> None:
    suspects = {n << 20: Suspicion(2) for n in range(5000)}
    mark = Progress(0, 1 << 40, runs_of(list(suspects)), in_hand=True, watched_until=9, suspects=suspects).mark()
    assert len(mark.metadata) <= MOST_BYTES
    assert Progress.read(mark) == Progress(0, 0, in_hand=True, watched_until=9)


@given(progresses(), st.data())
def test_a_damaged_text_says_nothing(progress: Progress, data: st.DataObject) -> None:
    mark = progress.mark()
    text = list(mark.metadata)
    if not text:
        return
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] = data.draw(st.sampled_from("Aa0+/=:p\n\u00e9").filter(lambda c: c != text[place]))
    assert Progress.read(Mark(mark.offset, "".join(text))) == Progress(mark.offset, mark.offset)


@given(st.text(max_size=100) | st.binary(max_size=100).map(lambda raw: "p1:" + raw.decode("latin-1")))
def test_any_other_text_says_nothing(text: str) -> None:
    assert Progress.read(Mark(5, text)) == Progress(5, 5)


def test_a_text_that_belongs_to_another_offset_says_nothing() -> None:
    mark = Progress(10, 20, ((10, 10),), in_hand=True).mark()
    assert Progress.read(Mark(4, mark.metadata)) == Progress(4, 4)


@given(st.lists(st.integers(0, 300), unique=True, max_size=100).map(sorted), st.data())
def test_exactly_what_was_settled_is_known_after_a_crash(delivered: list[int], data: st.DataObject) -> None:
    settled = data.draw(st.sets(st.sampled_from(delivered))) if delivered else set()
    mark = Watermark(0)
    mark.deliver(delivered)
    mark.settle(settled)
    open_ = mark.open
    read = Progress.read(Progress(mark.position, mark.end, open_, in_hand=True).mark())
    assert {offset for offset in delivered if read.settled(offset)} == settled
