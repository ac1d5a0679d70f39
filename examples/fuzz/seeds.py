"""Small real files of each format, as the libraries write them: (file name, bytes)."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mutations import records_of

C, D = 4, 6


def safetensors() -> Iterator[tuple[str, bytes]]:
    """Files of the safetensors library."""
    from safetensors.numpy import save

    weight = np.linspace(1, 2, C * D, dtype=np.float32).reshape(C, D)
    tensors = {"conv.weight": np.ones((D, 3, 1, 1), np.float32), "fc.weight": weight}
    tensors["fc.bias"] = np.zeros(C, np.float32)
    yield "m.safetensors", save(tensors, {"format": "pt"})
    yield "m.safetensors", save({name: t.astype(np.float16) for name, t in tensors.items()})


def saved(legacy: bool) -> Iterator[tuple[str, bytes]]:
    """Files of torch.save: a state dict, and one in a training checkpoint."""
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, D, 1, bias=False), torch.nn.Linear(D, C)]
    state = dict(torch.nn.Sequential(*layers).state_dict())
    nested = {"state_dict": state, "epoch": 3, "names": ["a", "b", "c", "d"], "lr": 0.1}
    for value in (state, nested):
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
        yield "m.pth", buffer.getvalue()


def pickles() -> Iterator[tuple[str, bytes]]:
    """Pickles of each protocol, and that of a checkpoint."""
    value = {
        "a": [1, 2.5, "x", b"y", None, True, (1, 2), {3}, frozenset({4}), 10**30, {"z": [[]]}],
        "path": Path("x"), "array": np.arange(3), "complex": 1j, "counter": Counter("aab"),
    }  # fmt: skip
    for protocol in range(6):
        yield "m.pkl", pickle.dumps(value, protocol)
    for _, data in saved(legacy=False):
        yield "m.pkl", dict(records_of(data))["archive/data.pkl"]


def program() -> Iterator[tuple[str, bytes]]:
    """An archive of torch.export, and the same without what only people read."""
    import torch

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = torch.nn.Conv2d(3, D, 2), torch.nn.Linear(D, C)

        def forward(self, x: Any) -> Any:
            with torch.no_grad():
                y = self.conv(x).relu()
            first, second = y.reshape(x.shape[0], D, -1).mean(2).chunk(2, 1)
            return self.fc(torch.cat([second, first + torch.tensor([0.5])], 1))

    sizes = ({0: torch.export.Dim("n")},)
    exported = torch.export.export(Small().eval(), (torch.randn(2, 3, 4, 4),), dynamic_shapes=sizes)
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    yield "m.pt2", buffer.getvalue()
    with zipfile.ZipFile(lean := io.BytesIO(), "w") as archive:
        for name, content in records_of(buffer.getvalue()):
            if name.endswith("model.json"):
                value = json.loads(content)
                for node in value["graph_module"]["graph"]["nodes"]:
                    node["metadata"] = {}
                content = json.dumps(value).encode()
            archive.writestr(zipfile.ZipInfo(name), content)
    yield "m.pt2", lean.getvalue()


def json_counts() -> Iterator[tuple[str, bytes]]:
    """Counts in each form of JSON."""
    named = {"counts": [3, 5], "classes": ["dog", "cat"]}
    document = {"schema": "rescale-cli/counts@1", "ok": True, "result": named}
    for value in ([3, 5, 7], {"dog": 3, "cat": 5}, {"0": 3, "1": 5}, named, document):
        yield "c.json", json.dumps(value).encode()


def csv_tables() -> Iterator[tuple[str, bytes]]:
    """Tables of counts and of labels."""
    yield "c.csv", b"class,count\ndog,3\ncat,5\n"
    yield "c.csv", b'image;label\na.png;"a;b"\nb.png;cat\nc.png;cat\n'
    yield "c.csv", b"\xef\xbb\xbf0\t3\r\n1\t5\r\n"
    yield "c.csv", b"path,label\nx/a.png,0\nx/b.png,1\n"


def npy() -> Iterator[tuple[str, bytes]]:
    """Arrays of counts."""
    for array in (np.array([3, 5, 7]), np.array([3.0, 5.0]), np.array([3, 5], ">i2")):
        np.save(buffer := io.BytesIO(), array)
        yield "c.npy", buffer.getvalue()


def arrays(**named: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """Arrays in a zip, stored and packed."""
    for write in (np.savez, np.savez_compressed):
        write(buffer := io.BytesIO(), **named)
        yield "c.npz", buffer.getvalue()


def npz() -> Iterator[tuple[str, bytes]]:
    """Images and labels."""
    yield from arrays(labels=np.array([0, 1, 1, 2]), images=np.zeros((4, 2, 2), np.uint8))


def coco() -> Iterator[tuple[str, bytes]]:
    """An annotation file of iNaturalist's kind."""
    value = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
        "annotations": [{"id": i, "image_id": i, "category_id": i % 2} for i in range(3)],
        "categories": [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}],
    }
    yield "c.json", json.dumps(value).encode()


def path_list() -> Iterator[tuple[str, bytes]]:
    """A list of paths and labels."""
    yield "c.txt", b"train/a b.jpg 0\ntrain/c.jpg 1\ntrain/d.jpg 1\n"


def idx() -> Iterator[tuple[str, bytes]]:
    """Labels in MNIST's form, raw and packed."""
    plain = struct.pack(">2I", 2049, 6) + bytes([0, 1, 1, 2, 2, 2])
    yield "train-labels-idx1-ubyte", plain
    yield "train-labels-idx1-ubyte.gz", gzip.compress(plain, mtime=0)


def logits() -> Iterator[tuple[str, bytes]]:
    """Logits and labels, as NumPy and as safetensors write them."""
    from safetensors.numpy import save

    named = {"logits": np.ones((5, C), np.float32), "labels": np.array([0, 1, 2, 3, 0])}
    yield from arrays(**named)
    yield "l.safetensors", save(named)
