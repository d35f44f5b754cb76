"""Writes Caffe's files in protobuf's wire format, as old and new versions of Caffe did."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

Blobs = Mapping[str, tuple[NDArray[np.float32], ...]]


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def chunk(field: int, body: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(body)) + body


def legacy_blob(array: NDArray[np.float32]) -> bytes:
    """Shape in fields 1 to 4, with ones in front."""
    shape = (1,) * (4 - array.ndim) + array.shape
    return b"".join(number(i + 1, n) for i, n in enumerate(shape)) + chunk(5, array.astype("<f4").tobytes())


def new_blob(array: NDArray[np.float32]) -> bytes:
    """Shape as packed integers in field 7; behind it a gradient, which a snapshot has."""
    shape = chunk(7, chunk(1, b"".join(varint(n) for n in array.shape)))
    return shape + chunk(5, array.astype("<f4").tobytes()) + chunk(6, struct.pack("<f", 1.0))


def odd_blob(array: NDArray[np.float32]) -> bytes:
    """What the format allows as well: unpacked dimensions and numbers, in several parts, and an unknown group."""
    flat = array.astype("<f4").ravel()
    half = flat.size // 2
    shape = chunk(7, b"".join(number(1, n) for n in array.shape))
    single = b"".join(varint(5 << 3 | 5) + value.tobytes() for value in flat[:half])
    group = varint(30 << 3 | 3) + number(1, 9) + chunk(2, b"x") + varint(30 << 3 | 4)
    return single + group + chunk(5, flat[half:].tobytes()) + shape


def double_blob(array: NDArray[np.float32]) -> bytes:
    return chunk(8, array.astype("<f8").tobytes()) + chunk(7, chunk(1, b"".join(varint(n) for n in array.shape)))


def v1_layer(name: str, kind: int, blobs: Iterable[bytes] = ()) -> bytes:
    """A layer of before 2015, with a bottom, a top and learning rates."""
    head = chunk(2, b"data") + chunk(3, b"top") + chunk(4, name.encode()) + number(5, kind)
    return chunk(2, head + b"".join(chunk(6, b) for b in blobs) + varint(7 << 3 | 5) + struct.pack("<f", 1.0))


def new_layer(name: str, kind: str, blobs: Iterable[bytes] = ()) -> bytes:
    return chunk(100, chunk(1, name.encode()) + chunk(2, kind.encode()) + b"".join(chunk(7, b) for b in blobs))


def old_net(blobs: Blobs) -> bytes:
    """A net with data, convolutions, ReLU and fully connected layers, in the format of 2014."""
    layers = [v1_layer(n, 4 if n.startswith("conv") else 14, map(legacy_blob, b)) for n, b in blobs.items()]
    return chunk(1, b"CaffeNet") + v1_layer("data", 5) + b"".join(layers) + v1_layer("relu1", 18) + chunk(3, b"data")


def new_net(blobs: Blobs) -> bytes:
    kinds = {n: "Convolution" if n.startswith("conv") else "InnerProduct" for n in blobs}
    layers = [new_layer(n, kinds[n], map(new_blob, b)) for n, b in blobs.items()]
    return chunk(1, b"CaffeNet") + new_layer("data", "Data") + b"".join(layers) + new_layer("relu1", "ReLU")
