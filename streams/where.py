"""Conditions over the columns of an index, so that a stream takes some of its shots without touching media.

A condition is ``(column, op, value)``, or a string such as ``"aesthetic>=5"``, ``"licence in CC0-1.0|CC BY 4.0"``,
``"characters has Red"``, ``"talking==true"`` or ``"licence!=null"``. All conditions of a list must hold.

=============  ====================================================================================
``==  !=``     equal, or not; of text, numbers, true and false
``<  <=  >  >=``  of numbers
``in``         equal to one of several values, written ``a|b|c``
``has``        of lists (``characters``, ``rejected_by``): holds one of the values, written ``a|b|c``
=============  ====================================================================================

**Null** (not measured, not stated) meets no condition, not even ``!=``; only ``column==null`` asks for it, and
``column!=null`` for everything else.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from animeshooter_records import DataError

OPERATORS = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
NULL = "null"
Scalar = str | float | bool | None


@dataclass(frozen=True)
class Condition:
    """One condition; ``values`` are alternatives for "in" and "has", and a single value otherwise (None is null)."""

    column: str
    op: str
    values: tuple[Scalar, ...]

    def __str__(self) -> str:
        values = "|".join("null" if value is None else str(value) for value in self.values)
        return f"{self.column} {self.op} {values}" if self.op.isalpha() else f"{self.column}{self.op}{values}"


def conditions(where: Iterable[str | tuple[str, str, Any] | Condition], schema: pa.Schema) -> list[Condition]:
    """Read conditions and check them against the columns there are.

    Raises:
        DataError: no such column (the nearest is suggested) or operator, or a value that is not of the column's type.
    """
    if isinstance(where, str):
        where = [where]
    return [_checked(one, schema) for one in where]


def _checked(one: str | tuple[str, str, Any] | Condition, schema: pa.Schema) -> Condition:
    value: Any
    if isinstance(one, Condition):
        column, op, value = one.column, one.op, one.values
    elif isinstance(one, str):
        column, op, value = _read(one)
    else:
        column, op, value = one
    if column not in schema.names:
        near = difflib.get_close_matches(str(column), schema.names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(schema.names)}"
        raise DataError(f"where '{one}': the index has no column '{column}'; {hint}")
    if op not in (*OPERATORS, "in", "has"):
        raise DataError(f"where '{one}': no operator '{op}'; use one of {', '.join(OPERATORS)}, in, has")
    many = op in ("in", "has")
    if many and isinstance(value, str):
        value = tuple(part.strip() for part in value.split("|"))
    values = tuple(value) if isinstance(value, (list, tuple, set, frozenset)) else (value,)
    kind = schema.field(column).type
    if kinds.is_dictionary(kind):
        kind = kind.value_type
    listed = kinds.is_list(kind)
    if listed != (op == "has") and values not in ((None,), (NULL,)):
        raise DataError(f"where '{one}': {column} is {'a list: use has' if listed else 'no list: use == or in'}")
    if not values or (len(values) > 1 and not many):
        raise DataError(f"where '{one}': {op} takes one value; use in for several")
    typed = tuple(_typed(value, kind.value_type if listed else kind, one) for value in values)
    if None in typed and op not in ("==", "!="):
        raise DataError(f"where '{one}': null is asked for with =={'' if op == '==' else ' or !='} only")
    if op in ("<", "<=", ">", ">=") and not isinstance(typed[0], (int, float)):
        raise DataError(f"where '{one}': {column} is no number; use ==, != or in")
    return Condition(column, op, typed)


def _read(text: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"\s*(\w+)\s*(==|!=|<=|>=|<|>)\s*(.*?)\s*", text) or re.fullmatch(
        r"\s*(\w+)\s+(in|has)\s+(.*?)\s*", text
    )
    if not found or not found[3]:
        raise DataError(f"where '{text}': write it as 'aesthetic>=5', 'licence in CC0-1.0|CC BY 4.0' or 'characters has Red'")
    return found[1], found[2], found[3]


def _typed(value: Any, kind: pa.DataType, one: object) -> Scalar:
    """A value as the column has it."""
    if value is None or (isinstance(value, str) and value == NULL):
        return None
    if kinds.is_boolean(kind):
        if isinstance(value, bool) or str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        raise DataError(f"where '{one}': '{value}' is not true or false")
    if kinds.is_integer(kind) or kinds.is_floating(kind):
        try:
            return float(value)
        except (TypeError, ValueError):
            raise DataError(f"where '{one}': '{value}' is not a number") from None
    return str(value)


def holds(condition: Condition, table: pa.Table) -> np.ndarray:
    """Which rows of an index meet a condition: bool [rows]."""
    column, op, values = table[condition.column], condition.op, condition.values
    if values == (None,):
        return np.asarray(pc.is_null(column) if op == "==" else pc.is_valid(column))
    if op == "has":
        names, owners = pc.list_flatten(column), np.asarray(pc.list_parent_indices(column))
        met = np.zeros(table.num_rows, dtype=bool)
        met[owners[np.asarray(pc.is_in(names, value_set=pa.array(values)))]] = True
        return met
    kind = column.type
    if kinds.is_dictionary(kind):
        column = pc.cast(column, kind.value_type)
    if kinds.is_integer(column.type):
        column = pc.cast(column, pa.float64())
    if op == "in":
        met = pc.and_(pc.is_valid(column), pc.is_in(column, value_set=pa.array(values, column.type)))
    else:
        met = pc.fill_null(OPERATORS[op](column, pa.scalar(values[0], column.type)), False)
    return np.asarray(met)


def offered(column: str, table: pa.Table) -> str:
    """What values a column has, in a few words."""
    values = table[column]
    if kinds.is_list(values.type):
        values = pc.list_flatten(values)
    values = pc.drop_null(values)
    if not len(values):
        return f"{column} is null everywhere"
    if kinds.is_integer(values.type) or kinds.is_floating(values.type):
        least, most = pc.min_max(values).as_py().values()
        return f"{column} runs from {least:g} to {most:g}"
    return f"{column} has {', '.join(sorted(map(str, pc.unique(values).to_pylist()))[:12])}"
