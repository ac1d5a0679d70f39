"""Archives of torch.export: the same logits as the network, and no way to run code from one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rescale_cli.errors import BadCheckpoint, BadInput, UnsafePickle
from rescale_cli.models.exported_network import load_exported

Records = dict[str, bytes]
C = 5
SHELL = "__import__('os').mkdir({!r})"


class Small(nn.Module):
    """A network with a convolution, a batch norm, a constant and a size that depends on n."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, C)
        self.register_buffer("loose", torch.arange(8.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = self.norm(self.conv(x)).relu()
        y = y.reshape(x.shape[0], 8, -1).mean(2) * self.loose + torch.tensor([0.5])
        first, second = y.chunk(2, 1)
        return self.fc(torch.cat([second, first], 1))


def export(network: nn.Module, path: Path) -> None:
    program = torch.export.export(
        network.eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    torch.export.save(program, path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("exported") / "good.pt2"
    export(Small(), path)
    return path


class Gate(nn.Module):
    """A branch on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x.flatten(1)
        return self.fc(torch.cond(z.sum() > 0, lambda a: a * 2, lambda a: a - 1, (z,)))


class Halved(nn.Module):
    """A region that computes in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.fc(x.flatten(1)).float()


@pytest.mark.parametrize("build", [Small, Gate, Halved])
def test_the_logits_are_those_of_the_network(build: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = build().eval()
    export(network, tmp_path / "m.pt2")
    module, classes = load_exported(tmp_path / "m.pt2")
    assert classes == C
    for n in (1, 4):
        for sign in (-1, 1):
            images = torch.rand(n, 3, 8, 8) * sign
            with torch.inference_mode():
                assert torch.equal(module(images), network(images))


def test_a_network_of_torchvision_gives_its_own_logits(tmp_path: Path) -> None:
    import torchvision

    network = torchvision.models.mobilenet_v3_small(num_classes=C).eval()
    export(network, tmp_path / "m.pt2")
    module, _ = load_exported(tmp_path / "m.pt2")
    images = torch.randn(3, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(module(images), network(images))


def test_files_that_the_exporter_added_are_let_pass_unread(tmp_path: Path) -> None:
    program = torch.export.export(
        Small().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    torch.export.save(program, tmp_path / "m.pt2", extra_files={"notes.txt": "trained in May"})
    assert load_exported(tmp_path / "m.pt2")[1] == C


# ---- attacks


class Attack:
    """The records of a good archive, changed so that something would make the marker folder."""

    def __init__(self, good: Path, marker: Path) -> None:
        with zipfile.ZipFile(good) as archive:
            self.records: Records = {name: archive.read(name) for name in archive.namelist()}
        self.root = next(iter(self.records)).split("/")[0]
        self.marker = marker
        self.shell = SHELL.format(str(marker))

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.marker),))

    @property
    def plain(self) -> bytes:
        """A plain pickle that makes the folder."""
        return pickle.dumps(self)

    @property
    def saved(self) -> bytes:
        """A file of torch.save that makes the folder."""
        buffer = io.BytesIO()
        torch.save({"fc.weight": torch.zeros(C, 8), "x": self}, buffer)
        return buffer.getvalue()

    def put(self, name: str, data: bytes) -> None:
        self.records[f"{self.root}/{name}"] = data

    def edit(self, name: str, change: Callable[[Any], object]) -> None:
        said = json.loads(self.records[f"{self.root}/{name}"])
        change(said)
        self.put(name, json.dumps(said).encode())

    def graph(self, change: Callable[[Any], object]) -> None:
        self.edit("models/model.json", lambda said: change(said["graph_module"]))

    def rename_root(self, root: str) -> None:
        self.records = {
            f"{root}/{name.split('/', 1)[1]}": data for name, data in self.records.items()
        }
        self.root = root


META = {
    "dtype": 1, "sizes": [{"as_int": 4}], "requires_grad": False, "layout": 7,
    "device": {"type": "cpu", "index": None}, "strides": [{"as_int": 1}],
    "storage_offset": {"as_int": 0},
}  # fmt: skip
CONSTANTS = "data/constants/model_constants_config.json"
WEIGHTS = "data/weights/model_weights_config.json"


def entry(path_name: str, pickled: bool = False, meta: Any = META) -> dict[str, Any]:
    return {
        "path_name": path_name, "is_param": False, "use_pickle": pickled, "tensor_meta": meta,
    }  # fmt: skip


def constant(path_name: str, pickled: bool = False, meta: Any = META) -> Callable[[Attack], None]:
    """A further constant, whose record is a plain pickle."""

    def change(attack: Attack) -> None:
        said = entry(path_name, pickled, meta)
        attack.edit(CONSTANTS, lambda table: table["config"].update({"x": said}))
        attack.put(f"data/constants/{path_name}", attack.saved if pickled else attack.plain)

    return change


def record(name: str, *, root: str | None = None) -> Callable[[Attack], None]:
    """A further record with a pickle."""

    def change(attack: Attack) -> None:
        if root:
            attack.rename_root(root)
        attack.put(name, attack.saved)

    return change


def call(target: str, argument: Callable[[Attack], dict[str, Any]]) -> Callable[[Attack], None]:
    """A further operator at the start of the program."""

    def change(attack: Attack) -> None:
        node = {
            "target": target, "metadata": {}, "name": "evil", "is_hop_single_tensor_return": None,
            "inputs": [{"name": "", "arg": argument(attack), "kind": 1}],
            "outputs": [{"as_tensor": {"name": "evil"}}],
        }  # fmt: skip
        attack.graph(lambda said: said["graph"]["nodes"].insert(0, node))

    return change


def name_of(attack: Attack) -> dict[str, Any]:
    return {"as_string": str(attack.marker)}


def everywhere(old: str, new: Callable[[Attack], str]) -> Callable[[Attack], None]:
    """Replace a string in the whole graph."""

    def change(attack: Attack) -> None:
        name = f"{attack.root}/models/model.json"
        text = attack.records[name].decode()
        assert old in text
        attack.records[name] = text.replace(old, json.dumps(new(attack))[1:-1]).encode()

    return change


def symbol(attack: Attack) -> None:
    said = json.loads(attack.records[f"{attack.root}/models/model.json"])
    sizes = said["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
    everywhere(json.dumps(sizes[0]["as_expr"]["expr_str"])[1:-1], lambda a: a.shell)(attack)


def guards(attack: Attack) -> None:
    attack.edit("models/model.json", lambda said: said.update(guards_code=[attack.shell]))


def range_of_code(attack: Attack) -> None:
    attack.edit(
        "models/model.json",
        lambda said: said["range_constraints"].update(
            {attack.shell: {"min_val": 0, "max_val": None}}
        ),
    )


def tree(attack: Attack) -> None:
    spec = '[1, {"type": "builtins.tuple", "context": %s, "children_spec": []}]'
    attack.graph(
        lambda said: said["module_call_graph"][0]["signature"].update(
            in_spec=spec % json.dumps(attack.shell), forward_arg_names=[f"x={attack.shell}"]
        )
    )


def source_function(attack: Attack) -> None:
    attack.graph(
        lambda said: said["graph"]["nodes"][0]["metadata"].update(
            source_fn_stack="x,torch.serialization.os.system", stack_trace=f"\n{attack.shell}"
        )
    )


def twice(attack: Attack) -> None:
    name = f"{attack.root}/{CONSTANTS}"
    said = json.dumps({"x": entry("opaque_obj_0")})
    attack.records[name] = f'{{"config": {said}, "config": {{}}}}'.encode()
    attack.put("data/constants/opaque_obj_0", attack.plain)


def old_layout(attack: Attack) -> None:
    attack.records = {
        "version": b"8.20",
        "serialized_exported_program.json": attack.records[f"{attack.root}/models/model.json"],
        "serialized_state_dict.pt": attack.saved,
        "serialized_constants.pt": attack.saved,
        "serialized_example_inputs.pt": attack.saved,
        "x/archive_format": b"pt2",
    }


def other_format(attack: Attack) -> None:
    attack.put("archive_format", b"pt3")
    attack.put("data/weights/model.pt", attack.saved)


def big_endian(attack: Attack) -> None:
    attack.put("byteorder", b"big")


def second_root(attack: Attack) -> None:
    attack.records["other/data/weights/model.pt"] = attack.saved


def other_model(attack: Attack) -> None:
    """A second program, with a weights file that torch would unpickle."""
    for name in list(attack.records):
        if "model" in name:
            attack.records[name.replace("model", "evil")] = attack.records[name]
    attack.put("data/weights/evil.pt", attack.saved)


def only_other_model(attack: Attack) -> None:
    renamed = {n.replace("/model", "/evil"): d for n, d in attack.records.items()}
    attack.records = {n.replace("/evils/", "/models/"): d for n, d in renamed.items()}
    attack.put("data/weights/evil.pt", attack.saved)


def pickled_weight(attack: Attack) -> None:
    def change(said: Any) -> None:
        first = next(iter(said["config"].values()))
        first["use_pickle"] = True
        attack.put(f"data/weights/{first['path_name']}", attack.saved)

    attack.edit(WEIGHTS, change)


def truthy(value: Any) -> Callable[[Attack], None]:
    """A weight whose use_pickle is not false, and not true either."""

    def change(attack: Attack) -> None:
        def edit(said: Any) -> None:
            first = next(iter(said["config"].values()))
            first["use_pickle"] = value
            attack.put(f"data/weights/{first['path_name']}", attack.saved)

        attack.edit(WEIGHTS, edit)

    return change


def weight_at(path_name: str) -> Callable[[Attack], None]:
    def change(attack: Attack) -> None:
        attack.edit(
            WEIGHTS, lambda said: next(iter(said["config"].values())).update(path_name=path_name)
        )

    return change


def sizes(value: Any) -> Callable[[Attack], None]:
    def change(attack: Attack) -> None:
        def edit(said: Any) -> None:
            next(iter(said["config"].values()))["tensor_meta"]["sizes"][0] = (
                {"as_expr": {"expr_str": attack.shell}} if value is None else {"as_int": value}
            )

        attack.edit(WEIGHTS, edit)

    return change


#: Each of these must be refused.
REFUSED: dict[str, Callable[[Attack], None]] = {
    "legacy weights": record("data/weights/model.pt"),
    "legacy constants": record("data/constants/model.pt"),
    "legacy weights below another root": record("data/weights/model.pt", root="archive"),
    "legacy weights below a root that looks like one": record("data/weights/model.pt", root="data"),
    "legacy weights of another model": record("data/weights/evil.pt"),
    "legacy weights in other letters": record("DATA/Weights/Model.pt"),
    "legacy weights in a nested folder": record("data/weights/deep/model.pt"),
    "a nested archive": record("archive/data/weights/model.pt"),
    "a pickle named as torch.save does": record("data.pkl"),
    "constants of TorchScript": record("constants.pkl"),
    "code of TorchScript": record("code/__torch__.py"),
    "compiled code": record("data/aotinductor/model/model.so"),
    "compiled code below another root": record("data/aotinductor/model/model.so", root="a"),
    "an executorch program": record("executorch/model.pte"),
    "old weights": record("xl_model_weights/weight_0"),
    "a weight that no table names": record("data/weights/weight_99"),
    "other example inputs": record("data/sample_inputs/evil.pt"),
    "example inputs": record("data/sample_inputs/model.pt"),
    "a second root": second_root,
    "a second program": other_model,
    "a program of another name": only_other_model,
    "the layout of torch 2.7": old_layout,
    "another format": other_format,
    "another order of bytes": big_endian,
    "an opaque object": constant("opaque_obj_0"),
    "an opaque object, pickled": constant("opaque_obj_0", pickled=True),
    "an opaque object without a shape": constant("opaque_obj_0", pickled=True, meta=None),
    "a custom object": constant("custom_obj_0"),
    "a custom object, pickled": constant("custom_obj_0", pickled=True, meta=None),
    "a pickled constant": constant("tensor_7", pickled=True),
    "a constant in another folder": constant("deep/tensor_7"),
    "a constant in other letters": constant("Tensor_7"),
    "a constant with another digit": constant("tensor_\u0663"),
    "a constant with a line end": constant("tensor_7\n"),
    "a table with two keys of one name": twice,
    "a pickled weight": pickled_weight,
    "use_pickle is 1": truthy(1),
    "use_pickle is text": truthy("false"),
    "use_pickle is null": truthy(None),
    "a weight outside": weight_at("../constants/tensor_0"),
    "an absolute weight": weight_at("/etc/passwd"),
    "a weight that is the table": weight_at("model_weights_config.json"),
    "a weight that is an opaque object": weight_at("opaque_obj_0"),
    "a size that is code": sizes(None),
    "a size beyond the record": sizes(1 << 40),
    "a negative size": sizes(-1),
    "os.system": call("torch.serialization.os.system", name_of),
    "os.mkdir": call("torch.serialization.os.mkdir", name_of),
    "torch.load": call("torch.load", name_of),
    "builtins through operator": call("_operator.__builtins__.exec", name_of),
    "operator.attrgetter": call("_operator.attrgetter", name_of),
    "operator.methodcaller": call("_operator.methodcaller", name_of),
    "math, then something": call("math.__loader__.load_module", name_of),
    "an extension": call("#evil:x", name_of),
    "a custom operator": call("torch.ops.evil.run.default", name_of),
    "loading a library of operators": call("torch.ops.load_library", name_of),
    "a file mapped as a tensor": call("torch.ops.aten.from_file.default", name_of),
    "a file that is written": call("torch.ops.aten.save.default", name_of),
    "an attribute of the operators": call("torch.ops.aten.__class__.__init__", name_of),
    "a kernel of triton": call("torch.ops.higher_order.triton_kernel_wrapper_functional", name_of),
    "an operator as an argument": call(
        "torch.ops.aten.relu.default", lambda _: {"as_operator": "torch.serialization.os.system"}
    ),
    "a custom object as an argument": call(
        "torch.ops.aten.relu.default",
        lambda _: {"as_custom_obj": {"name": "x", "class_fqn": "os.system"}},
    ),
}

#: Here the code lies in strings that are never read; the archive may load, and gives its logits.
UNREAD: dict[str, Callable[[Attack], None]] = {
    "a pickle among the extra files": record("extra/model.pt"),
    "a symbolic size": symbol,
    "guards": guards,
    "a range": range_of_code,
    "a tree of arguments": tree,
    "the name of a source function": source_function,
    "the name of an input": everywhere('"x"', lambda a: f"x={a.shell}"),
    "the name of a parameter's node": everywhere("p_fc_weight", lambda a: f"p={a.shell}"),
    "the name of a value": everywhere('"name": "relu"', lambda a: f"relu;{a.shell}"),
}


def write(records: Records, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def attack(good: Path, tmp_path: Path) -> Iterator[Attack]:
    """An archive to change. Whatever happens to it, nothing of it must run."""
    made = Attack(good, tmp_path / "was-run")
    yield made
    assert not made.marker.exists(), "code from the archive was run"


@pytest.mark.parametrize("name", REFUSED)
def test_an_archive_with_anything_unknown_is_refused_by_name(
    name: str, attack: Attack, tmp_path: Path
) -> None:
    REFUSED[name](attack)
    with pytest.raises((BadCheckpoint, UnsafePickle)) as caught:
        load_exported(write(attack.records, tmp_path / "bad.pt2"))
    assert caught.value.exit_code == 3
    assert caught.value.saw
    assert caught.value.fix


@pytest.mark.parametrize("name", UNREAD)
def test_code_in_a_string_of_the_graph_is_never_read(
    name: str, attack: Attack, good: Path, tmp_path: Path
) -> None:
    UNREAD[name](attack)
    images = torch.randn(3, 3, 8, 8)
    with torch.inference_mode():
        wanted = load_exported(good)[0](images)
        try:
            module, _ = load_exported(write(attack.records, tmp_path / "bad.pt2"))
            assert torch.equal(module(images), wanted)
        except BadInput:
            pass


@pytest.mark.parametrize("name", ["legacy weights", "an opaque object"])
def test_torch_itself_would_run_it(name: str, good: Path, tmp_path: Path) -> None:
    """The attacks are real: torch's reader makes the folder."""
    made = Attack(good, tmp_path / "was-run")
    REFUSED[name](made)
    path = write(made.records, tmp_path / "bad.pt2")
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert made.marker.exists()
