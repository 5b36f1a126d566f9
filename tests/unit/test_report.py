"""A report's file, as a spreadsheet opens it."""

from __future__ import annotations

import csv
from decimal import Decimal

from pipeline.jobs_library.report import _csv


def test_no_text_of_a_report_is_a_formula_and_numbers_stay_numbers() -> None:
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx"]
    rows = [(text,) for text in texts] + [("a=b",), (-1,), (Decimal("-1.5"),), (None,)]
    first, *cells = csv.reader(_csv(["=name"], rows).decode().splitlines(keepends=True))
    assert first == ["'=name"]
    told = [cell[0] if cell else "" for cell in cells]
    assert told[:5] == [f"'{text}" for text in texts[:5]]
    assert told[-4:] == ["a=b", "-1", "-1.5", ""]
