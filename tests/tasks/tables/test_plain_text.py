"""Texts from elsewhere change nothing but what they say."""

import csv
import io

import pytest

from tasks.tables.plain_text import code_span, cut, markdown, shown, spreadsheet_cell, visible


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.mp4", "a.mp4"),
        ("\x1b]0;PWNED\x07\x1b[2J", r"\x1b]0;PWNED\x07\x1b[2J"),
        ("\x9b2J\x7f\x00\r\b", r"\x9b2J\x7f\x00\x0d\x08"),
        ("\u202etxt\u2066x\u200f\u061c", r"\u202etxt\u2066x\u200f\u061c"),
        ("\ufeff\u200b\u2028\U000e0041\udc80", r"\ufeff\u200b\u2028\U000e0041\udc80"),
        ("Ärger, 日本語, עברית\nline\ttab", "Ärger, 日本語, עברית\nline\ttab"),
        ("👩\u200d👩\u200d👧 می\u200cخواهم", "👩\u200d👩\u200d👧 می\u200cخواهم"),
    ],
)
def test_control_characters_and_turns_of_direction_are_written_out(text, expected):
    assert visible(text) == expected
    assert visible(visible(text)) == expected


def test_line_breaks_can_be_written_out_too():
    assert visible("a\nb\t", keep="") == r"a\x0ab\x09"


FORMULAS = ['=HYPERLINK("x")', "@SUM(1)", "+1+cmd|' /C calc'!A0", "-2+3", "\t=1", "\r=1", "  =1", "--"]


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_of_a_spreadsheet_become_text(text):
    assert spreadsheet_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["a=b", "-2.5", "+1e3", "", "A cat.", -2.5, None, 7])
def test_numbers_and_other_text_stay(value):
    assert spreadsheet_cell(value) == value


def test_long_values_are_cut_off_without_being_written_in_full():
    nested: list = ["x"] * 10
    for _ in range(20):
        nested = [nested] * 10
    assert len(shown(nested)) <= 200
    assert len(shown("x" * 10**6)) <= 200
    assert shown(10**5000) == "a value of type int"
    assert shown(5) == "5"
    assert cut("x" * 50, 10) == "x" * 9 + "…"


def test_a_csv_file_with_such_cells_is_read_back(tmp_path):
    out = io.StringIO()
    csv.writer(out).writerow([spreadsheet_cell("=1"), spreadsheet_cell("a")])
    assert out.getvalue() == "'=1,a\r\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat.", "A cat."),
        ("![b](http://127.0.0.1/x.png)", r"\!\[b\](http://127.0.0.1/x.png)"),
        ("<img src=x>\n# a | b `c` *d*", r"&lt;img src=x&gt; # a \| b \`c\` \*d\*"),
        ("\x1b[2J", r"\\x1b\[2J"),
        ("camera_motion", "camera_motion"),
    ],
)
def test_text_formats_nothing_in_a_markdown_page(text, expected):
    assert markdown(text) == expected


def test_a_path_stays_inside_its_code():
    assert code_span("/a`![b](c)`\n/x") == r"`/a'![b](c)'\x0a/x`"
