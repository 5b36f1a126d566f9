"""What is printed of records, whoever wrote them: as it is, on one line, and nothing that moves a terminal."""

from __future__ import annotations

import pytest

from pipeline.cli.output import print_object, print_rows

ID = "[red]user:id:7[/] [/bold]"  # tags and an emoji to a library for pretty terminals


def test_cells_are_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([{"id": ID, "n": 1}], "table")
    assert ID in capsys.readouterr().out


def test_a_row_is_a_line_and_control_characters_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([{"id": "a\nb", "type": "\x1b[2J\x9b31m\x7f", "name": "Zoë 🔑"}], "table")
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["id", "type", "name"]
    assert row.split()[:2] == [r"a\nb", r"\x1b[2J\x9b31m\x7f"]
    assert "Zoë 🔑" in row


def test_values_of_an_object_are_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    print_object({"message": "first\n\x1b]0;title\x07second", "tags": ["a\x9b"]}, "table")
    assert len(capsys.readouterr().out.splitlines()) == 2
