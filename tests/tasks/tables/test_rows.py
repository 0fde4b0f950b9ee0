"""Typed rows say what the schemas say."""

import typing
from datetime import datetime

import pyarrow as pa
import pytest

from tasks.tables import rows
from tasks.tables.rows import ClipRow, as_rows
from tasks.tables.schemas import SCHEMAS


def python_type(kind: pa.DataType) -> type:
    """The type of a value of that Arrow type in `pa.Table.to_pylist`."""
    if pa.types.is_list(kind):
        return list[python_type(kind.value_type)]
    checks = {
        str: pa.types.is_string,
        int: pa.types.is_integer,
        float: pa.types.is_floating,
        bool: pa.types.is_boolean,
        bytes: pa.types.is_binary,
        datetime: pa.types.is_timestamp,
    }
    [match] = [python for python, check in checks.items() if check(kind)]
    return match


def row_class(table: str) -> str:
    """Name of the class of the rows of a table: `TextFeatureRow` for text_features."""
    return "".join(word.capitalize() for word in table.removesuffix("s").split("_")) + "Row"


@pytest.mark.parametrize("table", SCHEMAS)
def test_typed_rows_have_the_columns_and_types_of_the_schema(table):
    expected = {field.name: python_type(field.type) for field in SCHEMAS[table]}
    assert typing.get_type_hints(getattr(rows, row_class(table))) == expected


def test_rows_hold_the_columns_that_were_read():
    clips = as_rows(pa.table({"clip_id": ["a"], "width": [64]}), ClipRow)
    assert clips == [{"clip_id": "a", "width": 64}]
