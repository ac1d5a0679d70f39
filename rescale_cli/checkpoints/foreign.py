"""Recognize files that cannot be read, of other frameworks or damaged, and say what to do."""

from __future__ import annotations

import os
import re
import shlex
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rescale_cli.checkpoints.formats import named_format
from rescale_cli.errors import BadCheckpoint, BadInput
from rescale_cli.files.reading import opened, read_at, refuse_lfs_pointer
from rescale_cli.files.zip_table import list_names

_AGAIN = "re-scale the PyTorch checkpoint that it was converted from, then convert that again"
_UNPACK = "unpack it, then name the file inside: "
_KERAS = (
    "in Keras, with n the class counts in the order of the outputs: layer = model.layers[-1]; "
    "k, b = layer.get_weights(); layer.set_weights([k * (n.max() / n) ** gamma, b])"
)
_LAYER = (
    "load it in TensorFlow and re-scale the last layer there, kernel *= (n.max() / n) ** gamma, "
    "with n the class counts in the order of the outputs; then save it again"
)

#: Offset, the bytes there, the kind of file, the fix; {} is the quoted path.
_MAGIC = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes (.h5)", _KERAS),
    (0, b"GGUF", "a GGUF file", _AGAIN),
    (4, b"TFL3", "a TensorFlow Lite model", _AGAIN),
    (4, b"ET12", "an ExecuTorch program", _AGAIN),
    (0, b"ptrt", "a TensorRT engine", "re-scale the checkpoint, export it, build the engine again"),
    (0, b"ftrt", "a TensorRT engine", "re-scale the checkpoint, export it, build the engine again"),
    (0, b"RKNN", "an RKNN model", _AGAIN),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK + "tar xzf {}, or gunzip {}"),
    (0, b"BZh", "a bzip2 archive", _UNPACK + "tar xjf {}, or bunzip2 {}"),
    (0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK + "tar xJf {}, or unxz {}"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK + "7z x {}"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK + "zstd -d {}"),
    (257, b"ustar", "a tar archive", _UNPACK + "tar xf {}"),
    (0, b"\x93NUMPY", "a single NumPy array", "name the checkpoint of the whole model"),
)  # fmt: skip

_TO_SAFETENSORS = (
    'python -c "import numpy as n; from safetensors.numpy import save_file as s; '
    "s({{k.replace('/', '.'): v for k, v in n.load('{}').items()}}, 'model.safetensors')\", "
    "then name model.safetensors"
)
_FLAX = (
    'python -c "from flax.serialization import msgpack_restore as r; from flax.traverse_util '
    "import flatten_dict as f; from safetensors.numpy import save_file; "
    "save_file(f(r(open('{}', 'rb').read()), sep='.'), 'model.safetensors')\", "
    "then name model.safetensors"
)


#: The package of a class or function that a pickle names, in older and newer protocols.
_GLOBAL = re.compile(
    rb"c([A-Za-z_]\w*)[\w.]*\n\w+\n|\x8c.([A-Za-z_]\w*)[\w.]*\x94?\x8c.\w+\x94?\x93", re.DOTALL
)
#: The first bytes of every file that torch.save wrote before 1.6.
_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True, slots=True)
class Foreign:
    """A model of another framework, or an archive that may contain a model."""

    kind: str
    """With an article: `a Keras model`."""
    fix: str
    """The next step."""
    saw: str = ""
    is_model: bool = True
    """Whether it is certainly a model; an archive may contain anything."""

    def refusal(self, path: Path) -> BadCheckpoint:
        """Return the error that names it."""
        return BadCheckpoint(
            f"{path.name} is {self.kind}, which rescale-cli does not support",
            saw=self.saw or str(path),
            fix=self.fix,
        )


def foreign_file(path: Path) -> Foreign | None:
    """Recognize a file of another framework by its content; None if it is not recognized."""
    found = _by_content(path)
    option = {"tf_model.h5": "from_tf", "flax_model.msgpack": "from_flax"}.get(path.name)
    if found is not None and option and path.with_name("config.json").is_file():
        return replace(
            found,
            fix="with transformers 4, and AutoModelFor... the class for its task: AutoModelFor..."
            f".from_pretrained({str(path.parent)!r}, {option}=True).save_pretrained('converted'), "
            "then name converted",
        )
    return found


def _by_content(path: Path) -> Foreign | None:
    with opened(path) as fd:
        size = path.stat().st_size
        head = read_at(fd, 0, min(size, 1 << 16))
        tail = read_at(fd, max(size - 8, 0), min(size, 8))
    name = shlex.quote(str(path))
    for at, magic, kind, fix in _MAGIC:
        if head[at : at + len(magic)] == magic:
            is_model = "archive" not in kind and "array" not in kind
            found = Foreign(kind, fix.replace("{}", name), f"{magic!r} at byte {at}", is_model)
            return _compressed_pickle(head) or found if magic == b"\x1f\x8b" else found
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head[:1] == b"\x80":
        return _pickle(head)
    if _is_msgpack(head):
        return Foreign("a Flax checkpoint (msgpack)", _FLAX.format(path))
    if head[:1] == b"\x08" and size > 8:
        return _protobuf(path, head)
    if path.suffix == ".pb":
        return Foreign("a TensorFlow graph", _LAYER)
    if tail == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb" or re.search(r"\.data-\d{5}-of-", path.name):
        return Foreign("a part of a TensorFlow checkpoint", _LAYER)
    beside = path.with_suffix(".xml")
    if head.lstrip()[:5] == b"<?xml" and b"<net " in head:
        saw = "<net> in its first lines"
        return Foreign(
            "an OpenVINO model", _AGAIN, saw, is_model=not path.with_suffix(".bin").exists()
        )
    if path.suffix == ".bin" and beside.is_file() and b"<net " in _start(beside):
        return Foreign("the weights of an OpenVINO model", _AGAIN, f"{beside.name} beside it")
    return _compressed_pickle(head)


def foreign_folder(folder: Path) -> Foreign | None:
    """Recognize a folder of another framework by its files; None if it is not recognized."""

    def has(*names: str) -> bool:
        return any((folder / name).exists() for name in names)

    if has("saved_model.pb", "saved_model.pbtxt"):
        return Foreign("a TensorFlow SavedModel", _LAYER, "saved_model.pb in it")
    if has("Data/com.apple.CoreML", "coremldata.bin"):
        return Foreign("a Core ML model", _AGAIN, "the files of Core ML in it")
    if has("_CHECKPOINT_METADATA", "manifest.ocdbt"):
        return Foreign(
            "an Orbax checkpoint (JAX)",
            "restore it with orbax.checkpoint, then: safetensors.numpy.save_file("
            "flax.traverse_util.flatten_dict(params, sep='.'), 'model.safetensors')",
            "the metadata of Orbax in it",
        )
    return None


def _start(path: Path) -> bytes:
    with opened(path) as fd:
        return read_at(fd, 0, min(path.stat().st_size, 4096))


def _zip(path: Path) -> Foreign | None:
    try:
        names = list_names(path)
    except BadCheckpoint:
        return None  # damaged; the reader of the format reports it
    name, listed = shlex.quote(str(path)), ", ".join(names[:5])
    if any(name.endswith("/archive_format") for name in names):
        fix = "re-scale the checkpoint that it was exported from, and export that again"
        return Foreign("an archive of torch.export", fix)
    if "model.weights.h5" in names:
        return Foreign("a Keras model (.keras)", _KERAS, "model.weights.h5 in it")
    if {"logits.npy", "labels.npy"} & set(names):
        return Foreign("a file of logits", f"give it as --logits {name}", listed, is_model=False)
    if names and all(name.endswith(".npy") for name in names):
        kind = "an npz file of arrays, as JAX models use"
        return Foreign(kind, _TO_SAFETENSORS.format(path), listed)
    if "schema.json" in names:
        return Foreign("a scikit-learn model (skops)", _sklearn_fix())
    inner = [n for n in names if n.endswith((".pt", ".pth", ".bin", ".safetensors", ".ckpt"))]
    where = f"unzip {name} -d unpacked, then name "
    fix = where + (f"unpacked/{inner[0]}" if inner else "the checkpoint in it")
    return Foreign("a zip archive that torch.save did not write", fix, listed, is_model=False)


def _sklearn_fix() -> str:
    return (
        "in scikit-learn, with n the class counts in the order of classes_: "
        "model.coef_ *= ((n.max() / n) ** gamma)[:, None]"
    )


def _pickle(head: bytes) -> Foreign | None:
    """Recognize a pickle of another library by the first uncommon module that it names."""
    if b"StructuredToParameterName@@" in head:
        fix = (
            'python -c "import paddle, torch; torch.save({k: torch.tensor(v.numpy()) for k, v in '
            "paddle.load('FILE').items()}, 'model.pth')\", then name model.pth"
        )
        return Foreign("a PaddlePaddle checkpoint", fix)
    if head.startswith(_TORCH_MAGIC[: len(head)]):
        return None  # a damaged file of torch.save
    modules = [one or other for one, other in _GLOBAL.findall(head)]
    known = (b"numpy", b"joblib", b"collections", b"copyreg", b"builtins", b"_codecs")
    named = [m.decode() for m in modules if m not in known]
    if "sklearn" in named:
        return Foreign("a scikit-learn model (pickle)", _sklearn_fix(), "sklearn in its pickle")
    trust = "if you trust its author, load it in Python and "
    if "torch" in named:
        fix = trust + "save it with torch.save, then name that file"
        return Foreign("a pickle of torch tensors that torch.save did not write", fix)
    library = next(iter(named), "numpy" if b"numpy" in head else "plain")
    fix = trust + (
        "write its arrays with safetensors.numpy.save_file({name: array}, 'model.safetensors'), "
        "then name that file"
    )
    saw = f"modules that it names: {', '.join(dict.fromkeys(named)) or 'none'}"[:120]
    return Foreign(f"a pickle of {library} objects", fix, saw, is_model=False)


def _compressed_pickle(head: bytes) -> Foreign | None:
    """Recognize a compressed joblib file: a pickle in gzip or zlib."""
    if head[:2] not in (b"\x1f\x8b", b"\x78\x01", b"\x78\x9c", b"\x78\xda", b"\x78\x5e"):
        return None
    try:
        inner = zlib.decompressobj(wbits=47).decompress(head, 1 << 16)
    except zlib.error:
        return None
    return _pickle(inner) if inner[:1] == b"\x80" else None


def _protobuf(path: Path, head: bytes) -> Foreign | None:
    """Tell ONNX, Core ML and SavedModel apart, which all begin with a version number in field 1."""
    if path.name == "saved_model.pb":
        return Foreign("the graph of a TensorFlow SavedModel", _LAYER)
    if path.suffix == ".mlmodel":
        return Foreign("a Core ML model", _AGAIN)
    letters = head[2:3] == b"\x12" and head[4 : 4 + min(head[3], 6)].isalpha()
    if path.suffix == ".onnx" or (letters and 0 < head[1] < 32):
        fix = "re-scale the checkpoint that it was exported from, and export that again"
        return Foreign("an ONNX model", fix)
    return None


def _is_msgpack(head: bytes) -> bool:
    """Whether the bytes begin a msgpack map whose text keys lead to a Flax array."""
    at = 0
    while at + 8 < len(head):
        code = head[at]
        at += {0xDE: 3, 0xDF: 5}.get(code, 1)
        if not (0x81 <= code <= 0x8F or code in (0xDE, 0xDF)):
            # An extension of type 1: a NumPy array.
            width = {0xC7: 1, 0xC8: 2, 0xC9: 4}.get(code, -1)
            return width > 0 and head[at + width] == 1
        key, size_of = head[at], {0xD9: 1, 0xDA: 2}
        if 0xA0 <= key <= 0xBF:
            at += 1 + (key & 31)
        elif key in size_of:
            at += 1 + size_of[key] + int.from_bytes(head[at + 1 : at + 1 + size_of[key]], "big")
        else:
            return False
    return False


def names_of(paths: Sequence[Path], most: int = 20) -> str:
    """Join paths in one line; a long list is cut, with the number of paths left out."""
    shown = ", ".join(str(path) for path in paths[:most])
    return shown + (f", and {len(paths) - most} more" if len(paths) > most else "")


_TORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pt2", ".th", ".pkl")
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<head|<\?xml[^>]*>\s*<error)", re.IGNORECASE)
_LOOKED_AT = 1 << 20
_FETCH_AGAIN = "fetch, copy or export the file again"


def unreadable(path: Path) -> BadInput:
    """Return the error for a file that is not a checkpoint of a known format.

    A damaged file is recognized by its suffix or first bytes; the reader of its format then reports
    the damage.
    """
    with opened(path) as fd:
        size = os.fstat(fd).st_size
        head = read_at(fd, 0, min(size, _LOOKED_AT))
    try:
        refuse_lfs_pointer(path, head[:64])
        other = _no_model(path, head, size) or foreign_file(path)
        if other is not None:
            return other if isinstance(other, BadInput) else other.refusal(path)
        reader = _reader_for(path, head)
        if reader is not None:
            named_format(reader).list_tensors(path)
    except BadInput as error:
        return error
    damaged = path.suffix == ".safetensors" or path.suffix in _TORCH
    return BadCheckpoint(
        f"{path.name} is damaged: it is neither a zip archive nor a pickle"
        if path.suffix in _TORCH
        else f"{path.name} is not in a supported format",
        saw=f"{size:,} bytes that begin with {head[:8]!r}",
        fix=_FETCH_AGAIN
        if damaged
        else "name a safetensors file, a file of torch.save, or a Hugging Face or timm folder",
    )


def _reader_for(path: Path, head: bytes) -> str | None:
    """Return the format whose reader can report the damage."""
    if head.startswith(b"PK\x03\x04"):
        return "torch_zip"
    if path.suffix == ".safetensors":
        return "safetensors_file"
    return "torch_legacy" if head[:1] == b"\x80" and path.suffix in _TORCH else None


def _no_model(path: Path, head: bytes, size: int) -> BadCheckpoint | None:
    """Return the error for the result of a failed download or copy."""
    if not head:
        return BadCheckpoint(f"{path.name} is an empty file", saw="0 bytes", fix=_FETCH_AGAIN)
    if not any(head):
        return BadCheckpoint(
            f"{path.name} contains only zeros: a download or copy was not completed",
            saw=f"the first {len(head):,} of {size:,} bytes are 0",
            fix="fetch or copy the file again",
        )
    if _PAGE.match(head):
        return BadCheckpoint(
            f"{path.name} is a web page (HTML or XML) that was saved instead of the model",
            saw=repr(head[:60].decode("utf-8", "replace")),
            fix="fetch the file itself: on the Hugging Face Hub, with /resolve/ instead of /blob/ "
            "in its address, and with a token if a login is required",
        )
    if b"\0" in head or b"<net " in head or not _is_text(head):
        return None
    return BadCheckpoint(
        f"{path.name} is a text file, not a model",
        saw=repr(head[:60].decode("utf-8", "replace")),
        fix=f"name the folder of the model: {path.parent}"
        if path.suffix == ".json"
        else "fetch the file of the model again, with a token if a login is required",
    )


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", "ignore")
    return len(text.encode()) >= len(head) - 3 and all(
        c.isprintable() or c in "\r\n\t" for c in text
    )
