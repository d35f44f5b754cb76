from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from data_modules.errors import DataError
from scripts.convert import __main__ as command
from scripts.convert import caffemodel
from scripts.convert.caffemodel import SHAPES, caffenet_state_dict, channel_mean, read_layers
from tests.scripts import caffe_writer as caffe

SMALL = {
    "conv1": (4, 3, 3, 3),
    "conv2": (6, 2, 3, 3),  # two groups
    "conv3": (8, 6, 3, 3),
    "conv4": (8, 4, 3, 3),
    "conv5": (6, 4, 3, 3),
    "fc6": (10, 24),
    "fc7": (10, 10),
    "fc8": (5, 10),
}
CONVOLUTIONS = tuple(name for name in SHAPES if name.startswith("conv"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[NDArray[np.float32], ...]]:
    """Blobs of a CaffeNet with few channels."""
    monkeypatch.setattr(caffemodel, "SHAPES", SMALL)
    rng = np.random.default_rng(0)
    return {n: tuple(rng.normal(size=s).astype(np.float32) for s in (shape, shape[:1])) for n, shape in SMALL.items()}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_the_specs_numbers_of_parameters() -> None:
    sizes = {name: math.prod(shape) + shape[0] for name, shape in SHAPES.items()}
    assert sizes == {
        **{"conv1": 34_944, "conv2": 307_456, "conv3": 885_120, "conv4": 663_936, "conv5": 442_624},
        **{"fc6": 37_752_832, "fc7": 16_781_312, "fc8": 4_097_000},
    }
    assert sum(sizes[name] for name in CONVOLUTIONS) == 2_334_080 and sum(sizes.values()) == 60_965_224


@pytest.mark.parametrize("net", [caffe.old_net, caffe.new_net])
def test_both_formats_give_the_same_weights(
    net: Callable[[caffe.Blobs], bytes], small: dict[str, tuple[NDArray[np.float32], ...]], tmp_path: Path
) -> None:
    state = caffenet_state_dict(write(tmp_path / "net.caffemodel", net(small)), "bgr", tuple(SMALL))
    assert list(state) == [f"{name}.{part}" for name in SMALL for part in ("weight", "bias")]
    for name, (weight, bias) in small.items():
        assert state[f"{name}.weight"].dtype == torch.float32
        np.testing.assert_array_equal(state[f"{name}.weight"], weight)
        np.testing.assert_array_equal(state[f"{name}.bias"], bias)
    assert all(tensor.is_contiguous() for tensor in state.values())


def test_rgb_weights_on_rgb_are_bgr_weights_on_bgr(
    small: dict[str, tuple[NDArray[np.float32], ...]], tmp_path: Path
) -> None:
    path = write(tmp_path / "net.caffemodel", caffe.old_net(small))
    rgb, bgr = (caffenet_state_dict(path, channels, tuple(SMALL)) for channels in ("rgb", "bgr"))  # type: ignore[arg-type]
    image = torch.rand(1, 3, 7, 7)
    first = functional.conv2d(image, rgb["conv1.weight"], rgb["conv1.bias"])
    torch.testing.assert_close(first, functional.conv2d(image[:, [2, 1, 0]], bgr["conv1.weight"], bgr["conv1.bias"]))
    assert not torch.equal(rgb["conv1.weight"], bgr["conv1.weight"])
    assert all(torch.equal(rgb[key], bgr[key]) for key in rgb if key != "conv1.weight")
    grouped = functional.conv2d(first, rgb["conv2.weight"], rgb["conv2.bias"], groups=2)
    weight, bias = small["conv2"]
    for out in range(6):  # Caffe's groups: the first half of the outputs sees the first half of the inputs
        seen = first[0, :2, :3, :3] if out < 3 else first[0, 2:, :3, :3]
        assert grouped[0, out, 0, 0].item() == pytest.approx(
            float((seen.numpy() * weight[out]).sum() + bias[out]), abs=1e-4
        )


@pytest.mark.parametrize("blob", [caffe.legacy_blob, caffe.new_blob, caffe.odd_blob, caffe.double_blob])
def test_every_way_to_write_a_blob(blob: Callable[[NDArray[np.float32]], bytes], tmp_path: Path) -> None:
    array = np.arange(300, dtype=np.float32).reshape(2, 3, 10, 5) / 7
    path = write(tmp_path / "net.caffemodel", caffe.new_layer("conv1", "Convolution", [blob(array)]))
    (layer,) = read_layers(path)
    assert (layer.name, layer.kind) == ("conv1", "Convolution")
    np.testing.assert_array_equal(layer.blobs[0], array)
    assert layer.blobs[0].dtype == np.float32


def test_layers_without_weights_are_read_too(small: dict[str, tuple[NDArray[np.float32], ...]], tmp_path: Path) -> None:
    layers = read_layers(write(tmp_path / "net.caffemodel", caffe.old_net(small)))
    assert [layer.name for layer in layers] == ["data", *SMALL, "relu1"]
    assert [layer.kind for layer in layers][:2] == ["5", "Convolution"] and layers[-1].kind == "18"
    assert layers[6].kind == "InnerProduct" and layers[0].blobs == ()


def test_protobuf_reads_and_writes_the_same(tmp_path: Path) -> None:
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    string, integer, real, double, message = 9, 3, 2, 1, 11

    def define(name: str, *fields: tuple[str, int, int, bool, str]) -> None:
        defined = file.message_type.add(name=name)
        for field, index, kind, repeated, type_name in fields:
            added = defined.field.add(name=field, number=index, type=kind, label=3 if repeated else 1)
            if type_name:
                added.type_name = f".caffe.{type_name}"
            elif repeated:
                added.options.packed = kind != string

    define("BlobShape", ("dim", 1, integer, True, ""))
    define(
        "BlobProto",
        *((name, i + 1, 5, False, "") for i, name in enumerate(("num", "channels", "height", "width"))),
        *(("data", 5, real, True, ""), ("shape", 7, message, False, "BlobShape"), ("double_data", 8, double, True, "")),
    )
    define(
        "LayerParameter",
        *(("name", 1, string, False, ""), ("type", 2, string, False, ""), ("blobs", 7, message, True, "BlobProto")),
    )
    define("NetParameter", ("name", 1, string, False, ""), ("layer", 100, message, True, "LayerParameter"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    net = message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))(name="CaffeNet")
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=(300, 2, 3, 3)).astype(np.float32), rng.normal(size=300).astype(np.float32)]
    layer = net.layer.add(name="conv1", type="Convolution")
    layer.blobs.add(data=arrays[0].ravel().tolist()).shape.dim.extend(arrays[0].shape)
    layer.blobs.add(double_data=arrays[1].tolist(), num=1, channels=1, height=1, width=300)
    content = net.SerializeToString()
    (read,) = read_layers(write(tmp_path / "net.caffemodel", content))
    np.testing.assert_array_equal(read.blobs[0], arrays[0])
    np.testing.assert_array_equal(read.blobs[1].ravel(), arrays[1])
    written = caffe.chunk(1, b"CaffeNet") + caffe.new_layer("conv1", "Convolution", map(caffe.odd_blob, arrays))
    parsed = type(net).FromString(written)  # what the tests write is what protobuf reads
    assert parsed.layer[0].name == "conv1" and list(parsed.layer[0].blobs[0].shape.dim) == [300, 2, 3, 3]
    np.testing.assert_array_equal(np.float32(parsed.layer[0].blobs[1].data), arrays[1])


def test_truncated_files_are_named_wherever_they_end(
    small: dict[str, tuple[NDArray[np.float32], ...]], tmp_path: Path
) -> None:
    whole = caffe.old_net(small)
    path = tmp_path / "net.caffemodel"
    last = whole.rindex(b"fc8")
    for size in (0, 1, 9, 60, 400, last // 2, last - 5, last + 5, last + 100):
        write(path, whole[:size])
        with pytest.raises(DataError, match=r"net\.caffemodel.*(truncated|lacks layer)"):
            caffenet_state_dict(path, only=tuple(SMALL))
    write(path, whole[:400])
    with pytest.raises(DataError, match=r"byte \d+: truncated: field 2 has \d+ bytes, \d+ are left"):
        read_layers(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x07rubbish", "field number 0"),
        (b"\x0frubbish", "unknown wire type 7"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "no protobuf message|truncated|holds no layers"),
        (b"<html>not found</html>", "no protobuf message|truncated|holds no layers|ends a group"),
        (b"\x08" + b"\xff" * 12, "more than 10 bytes"),
        (b"\x0c", "ends a group that never began"),
        (b"\x0b\x08\x01", "a group is not closed"),
        (b"\x10\x01", "field 2 has wire type 0"),
        (caffe.chunk(2, caffe.chunk(1, b"")), "upgrade_net_proto_binary"),
        (caffe.new_layer("a", "b", [caffe.chunk(5, b"12345")]), "5 bytes of numbers of 4"),
        (caffe.new_layer("a", "b", [caffe.chunk(1, b"1")]), "field 1 is no number"),
        (
            caffe.new_layer("a", "b", [caffe.number(4, 3) + caffe.chunk(5, bytes(8))]),
            r"2 numbers for the shape \(1, 1, 1, 3\)",
        ),
        (caffe.new_layer("a", "b", [caffe.chunk(7, caffe.chunk(1, b"\x80"))]), "truncated inside a number"),
    ],
)
def test_damaged_files_are_named(content: bytes, what: str, tmp_path: Path) -> None:
    path = write(tmp_path / "net.caffemodel", content)
    with pytest.raises(DataError, match=what) as caught:
        read_layers(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"net\.caffemodel: can't be read .*make data-caffenet"):
        read_layers(tmp_path / "net.caffemodel")


def test_other_nets_are_named(small: dict[str, tuple[NDArray[np.float32], ...]], tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    tuned = dict(small)
    tuned["fc8_flickr"] = tuned.pop("fc8")
    write(path, caffe.old_net(tuned))
    with pytest.raises(DataError, match=r"unknown layer 'fc8_flickr' of type InnerProduct; .*with `only`"):
        caffenet_state_dict(path, only=tuple(SMALL))
    assert len(caffenet_state_dict(path, only=CONVOLUTIONS)) == 10
    with pytest.raises(ValueError, match=r"only=\['conv9'\]"):
        caffenet_state_dict(path, only=("conv9",))
    with pytest.raises(ValueError, match="channels='gbr'"):
        caffenet_state_dict(path, "gbr", CONVOLUTIONS)  # type: ignore[arg-type]
    write(path, caffe.old_net({k: v for k, v in small.items() if k != "conv3"}))
    with pytest.raises(DataError, match="lacks layer 'conv3'"):
        caffenet_state_dict(path, only=tuple(SMALL))
    write(path, caffe.old_net(small) + caffe.v1_layer("fc7", 14, map(caffe.legacy_blob, small["fc7"])))
    with pytest.raises(DataError, match="layer 'fc7' stands twice"):
        caffenet_state_dict(path, only=tuple(SMALL))
    write(path, caffe.old_net(small | {"conv2": small["conv2"][:1]}))
    with pytest.raises(DataError, match="layer 'conv2': 1 blobs instead of weight and bias"):
        caffenet_state_dict(path, only=tuple(SMALL))
    ungrouped = np.zeros((6, 4, 3, 3), np.float32)
    write(path, caffe.new_net(small | {"conv2": (ungrouped, small["conv2"][1])}))
    with pytest.raises(DataError, match=r"'conv2': weight of shape \(6, 4, 3, 3\), CaffeNet's is \(6, 2, 3, 3\)"):
        caffenet_state_dict(path, only=tuple(SMALL))


def test_the_mean_colour(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 8, 8)).astype(np.float32)
    for blob in (caffe.legacy_blob, caffe.new_blob):
        path = write(tmp_path / "mean.binaryproto", blob(pixels))
        np.testing.assert_allclose(channel_mean(path, "bgr"), pixels.mean(axis=(1, 2)), rtol=1e-5)
        np.testing.assert_allclose(channel_mean(path), pixels.mean(axis=(1, 2))[::-1], rtol=1e-5)
    write(path, caffe.legacy_blob(pixels[:2]))
    with pytest.raises(DataError, match="expected 3 x height x width"):
        channel_mean(path)


def test_the_trunk_at_full_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blobs = {n: tuple(rng.random(s, np.float32) for s in (SHAPES[n], SHAPES[n][:1])) for n in CONVOLUTIONS}
    state = caffenet_state_dict(write(tmp_path / "net.caffemodel", caffe.old_net(blobs)), only=CONVOLUTIONS)
    assert sum(tensor.numel() for tensor in state.values()) == 2_334_080
    np.testing.assert_array_equal(state["conv1.weight"], blobs["conv1"][0][:, ::-1])
    np.testing.assert_array_equal(state["conv5.weight"], blobs["conv5"][0])


@pytest.mark.slow
def test_all_of_it_at_full_size(tmp_path: Path) -> None:
    blobs = {n: tuple(np.full(s, 0.5, np.float32) for s in (shape, shape[:1])) for n, shape in SHAPES.items()}
    state = caffenet_state_dict(write(tmp_path / "net.caffemodel", caffe.new_net(blobs)))
    assert sum(tensor.numel() for tensor in state.values()) == 60_965_224


def test_the_command(
    small: dict[str, tuple[NDArray[np.float32], ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write(tmp_path / "net.caffemodel", caffe.old_net(small))
    target = tmp_path / "weights" / "caffenet.pt"
    arguments = ["caffemodel", str(source), str(target), "--only", *CONVOLUTIONS]
    assert command.main(arguments) == 0
    assert "in 10 tensors, rgb (not BVLC's release" in capsys.readouterr().out
    state = torch.load(target, weights_only=True)
    assert all(torch.equal(state[k], v) for k, v in caffenet_state_dict(source, only=CONVOLUTIONS).items())
    assert [path.name for path in target.parent.iterdir()] == ["caffenet.pt"]
    monkeypatch.setattr(command, "SHA1", hashlib.sha1(source.read_bytes()).hexdigest())
    assert command.main(arguments) == 0
    assert "(BVLC's release)" in capsys.readouterr().out
    source.write_bytes(b"")
    assert command.main(arguments) == 1
    assert "net.caffemodel: holds no layers" in capsys.readouterr().err
