"""CaffeNet's weights from a .caffemodel, without Caffe and without its schema.

The file is a serialized `NetParameter`. Its layers are in field 100 (`LayerParameter`: name 1, type 2, blobs 7) or, in
files of before 2015, in field 2 (`V1LayerParameter`: name 4, type 5, blobs 6). A blob (`BlobProto`) has its numbers in
field 5, or as doubles in field 8, and its shape in field 7 (`BlobShape`: dimensions in field 1), or as num, channels,
height and width in fields 1 to 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.errors import DataError
from scripts.convert.wire import BYTES, VARINT, Field, fields, integers

SHA1 = "4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46"  # of BVLC's bvlc_reference_caffenet.caffemodel, from its model page
# Weights as (out, in / groups, height, width): conv2, conv4 and conv5 have two groups.
SHAPES: dict[str, tuple[int, ...]] = {
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
    "fc6": (4096, 9216),
    "fc7": (4096, 4096),
    "fc8": (1000, 4096),
}
V1_TYPES = {4: "Convolution", 14: "InnerProduct"}
WEIGHTED = tuple(V1_TYPES.values())
Channels = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Layer:
    """A layer of the file with its blobs, float32; `kind` is Caffe's type, or the number of a type that isn't known."""

    name: str
    kind: str
    blobs: tuple[NDArray[np.float32], ...]


def read_layers(path: Path) -> list[Layer]:
    """Read all layers of a .caffemodel, in the order of the file.

    Raises:
        DataError: The file is missing, truncated, no `NetParameter`, or of the format of 2013; where is named.
    """
    layers: list[Layer] = []
    for field in fields(_read(path), str(path)):
        if field.number in (2, 100):
            where = f"{path}: layer {len(layers)}"
            layers.append(_layer(_message(field, where), where, is_v1=field.number == 2))
    if not layers:
        raise DataError(f"{path}: holds no layers: truncated, or not a .caffemodel; fetch the file again")
    return layers


def caffenet_state_dict(
    path: str | Path, channels: Channels = "rgb", only: Sequence[str] = tuple(SHAPES)
) -> dict[str, Tensor]:
    """Convert CaffeNet's weights.

    Args:
        path: The .caffemodel.
        channels: Order of the colours that the net is to be fed with. Caffe's is `bgr`; for `rgb` the input channels of
            conv1 are reversed, and the subtracted mean must be `channel_mean(..., channels="rgb")`.
        only: Layers to take; others in the file are then ignored, so that fine-tuned nets with another fc8 can be read.

    Returns:
        `<layer>.weight` and `<layer>.bias`, float32: convolutions [out, in / groups, height, width], fully connected
        layers [out, in]. fc6 expects conv5's map flattened channels first, as torch does it.

    Raises:
        DataError: The file is damaged, lacks a layer or holds one that CaffeNet doesn't have (with the default `only`),
            or a blob has another shape than CaffeNet's.
        ValueError: `only` or `channels` is none of those there are.
    """
    path = Path(path)
    if unknown := set(only) - set(SHAPES):
        raise ValueError(f"only={sorted(unknown)}: CaffeNet's layers are {list(SHAPES)}")
    if channels not in ("rgb", "bgr"):
        raise ValueError(f"channels={channels!r}: expected 'rgb' or 'bgr'")
    layers: dict[str, Layer] = {}
    for layer in read_layers(path):
        if not layer.blobs or (layer.name not in only and len(only) < len(SHAPES)):
            continue
        if layer.name not in SHAPES or layer.kind not in WEIGHTED:
            known = f"CaffeNet's layers with weights are {list(SHAPES)}; name those to take with `only`"
            raise DataError(f"{path}: unknown layer {layer.name!r} of type {layer.kind}; {known}")
        if layer.name in layers:
            raise DataError(f"{path}: layer {layer.name!r} stands twice; fetch the file again")
        layers[layer.name] = layer
    state: dict[str, Tensor] = {}
    for name in only:
        if name not in layers:
            raise DataError(
                f"{path}: lacks layer {name!r}: truncated, or another net than CaffeNet; fetch the file again"
            )
        blobs = layers[name].blobs
        if len(blobs) != 2:
            raise DataError(f"{path}: layer {name!r}: {len(blobs)} blobs instead of weight and bias")
        for key, blob, shape in zip(("weight", "bias"), blobs, (SHAPES[name], SHAPES[name][:1]), strict=True):
            # Files of before 2015 pad shapes with ones in front: (1, 1, out, in) and (1, 1, 1, out).
            squeezed = blob.reshape(blob.shape[-len(shape) :]) if set(blob.shape[: -len(shape)]) <= {1} else blob
            if squeezed.shape != shape:
                raise DataError(f"{path}: layer {name!r}: {key} of shape {blob.shape}, CaffeNet's is {shape}")
            state[f"{name}.{key}"] = torch.from_numpy(squeezed.copy())
    if channels == "rgb" and "conv1" in only:
        state["conv1.weight"] = state["conv1.weight"].flip(1)
    return state


def channel_mean(path: str | Path, channels: Channels = "rgb") -> Tensor:
    """Read the mean colour from Caffe's `imagenet_mean.binaryproto`, a blob of BGR pixels.

    Returns:
        [3], float32, in the order `channels`, on the scale of pixels from 0 to 255.

    Raises:
        DataError: The file is missing, damaged or no image of three channels.
    """
    path = Path(path)
    blob = _blob(_read(path), str(path))
    if blob.ndim < 3 or blob.shape[-3] != 3 or blob.size != math.prod(blob.shape[-3:]):
        raise DataError(f"{path}: a blob of shape {blob.shape}, expected 3 x height x width")
    mean = torch.from_numpy(blob.reshape(3, -1).mean(axis=1, dtype=np.float64).astype(np.float32))
    return mean.flip(0) if channels == "rgb" else mean


def _read(path: Path) -> memoryview:
    try:
        return memoryview(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); make data-caffenet fetches it") from error


def _layer(message: memoryview, where: str, is_v1: bool) -> Layer:
    name_field, type_field, blob_field = (4, 5, 6) if is_v1 else (1, 2, 7)
    name = kind = ""
    blobs: list[memoryview] = []
    for field in fields(message, where):
        if field.number == name_field:
            name = bytes(_message(field, where)).decode("utf-8", "replace")
        elif field.number == type_field:
            value = field.value
            kind = (
                V1_TYPES.get(value, str(value)) if isinstance(value, int) else bytes(value).decode("utf-8", "replace")
            )
        elif field.number == blob_field:
            blobs.append(_message(field, where))
        elif is_v1 and field.number == 1:
            raise DataError(f"{where}: the format of 2013; run Caffe's upgrade_net_proto_binary on the file")
    where = f"{where} ({name!r})"
    return Layer(name, kind, tuple(_blob(blob, f"{where}, blob {i}") for i, blob in enumerate(blobs)))


def _blob(message: memoryview, where: str) -> NDArray[np.float32]:
    shape: list[int] | None = None
    legacy = [1, 1, 1, 1]
    chunks: list[NDArray[Any]] = []
    for field in fields(message, where):
        if field.number in (5, 8):
            dtype = np.dtype("<f4" if field.number == 5 else "<f8")
            data = _message(field, where, packed=True)
            if len(data) % dtype.itemsize:
                raise DataError(f"{where}: {len(data)} bytes of numbers of {dtype.itemsize}; fetch the file again")
            chunks.append(np.frombuffer(data, dtype))
        elif field.number == 7:
            shape = [
                n for part in fields(_message(field, where), where) if part.number == 1 for n in integers(part, where)
            ]
        elif field.number <= 4:
            if field.kind != VARINT or not isinstance(field.value, int):
                raise DataError(f"{where}: field {field.number} is no number; this is no Caffe blob")
            legacy[field.number - 1] = field.value
            shape = shape or legacy
    numbers = np.concatenate([chunk.astype(np.float32) for chunk in chunks] or [np.zeros(0, np.float32)])
    expected = [numbers.size] if shape is None else shape
    if math.prod(expected) != numbers.size:
        raise DataError(f"{where}: {numbers.size} numbers for the shape {tuple(expected)}; fetch the file again")
    return numbers.reshape(expected)


def _message(field: Field, where: str, packed: bool = False) -> memoryview:
    # Unpacked repeated floats come as one 32-bit field each.
    if isinstance(field.value, int) or (field.kind != BYTES and not packed):
        raise DataError(f"{where}: field {field.number} has wire type {field.kind}; this is no file of Caffe's")
    return field.value
