"""A reader of protobuf's wire format: numbered fields, without a schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from data_modules.errors import DataError

VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = range(6)


class Field(NamedTuple):
    """One field of a message.

    Args:
        number: Its number in the schema.
        kind: Wire type: VARINT, FIXED64, BYTES or FIXED32.
        value: The integer of a varint; the bytes of all others, in little-endian order.
    """

    number: int
    kind: int
    value: int | memoryview


def fields(message: memoryview, where: str) -> Iterator[Field]:
    """Yield the fields of a message in their order; groups, which nobody writes any more, are skipped.

    Args:
        message: The message's bytes.
        where: File and message, for errors.

    Raises:
        DataError: The bytes end in the middle of a field, or are no message; `where` and the position are named.
    """
    position, groups = 0, 0
    while position < len(message):
        start = position
        key, position = _varint(message, position, where)
        number, kind = key >> 3, key & 7
        if number == 0:
            _fail(where, start, "field number 0: these bytes are no protobuf message")
        if kind == VARINT:
            value, position = _varint(message, position, where)
            if not groups:
                yield Field(number, kind, value)
            continue
        if kind in (GROUP, GROUP_END):
            groups += 1 if kind == GROUP else -1
            if groups < 0:
                _fail(where, start, f"field {number} ends a group that never began")
            continue
        if kind == BYTES:
            size, position = _varint(message, position, where)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            _fail(where, start, f"field {number} has the unknown wire type {kind}: these bytes are no protobuf message")
        left = len(message) - position
        if size > left:
            _fail(where, start, f"truncated: field {number} has {size} bytes, {left} are left")
        if not groups:
            yield Field(number, kind, message[position : position + size])
        position += size
    if groups:
        _fail(where, position, "truncated: a group is not closed")


def integers(field: Field, where: str) -> list[int]:
    """Read a repeated integer field, packed or not."""
    if isinstance(field.value, int):
        return [field.value]
    found, position = [], 0
    while position < len(field.value):
        value, position = _varint(field.value, position, where)
        found.append(value)
    return found


def _varint(message: memoryview, position: int, where: str) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if position >= len(message):
            _fail(where, position, "truncated inside a number")
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    else:
        _fail(where, position, "a number of more than 10 bytes: these bytes are no protobuf message")
    return value & ((1 << 64) - 1), position


def _fail(where: str, position: int, what: str) -> NoReturn:
    raise DataError(f"{where}, byte {position}: {what}; fetch the file again")
