"""No pickle is run; the names that no checkpoint needs are refused; the usual ones are read."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import decimal
import enum
import fractions
import functools
import pathlib
import pickle
import pickletools
import random
import struct
import time
import tracemalloc
import types
import typing
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescale_cli.checkpoints import pickle_machine
from rescale_cli.checkpoints.pickle_machine import load_pickle
from rescale_cli.checkpoints.pickle_opcodes import OPCODES
from rescale_cli.checkpoints.pickle_policy import Built, Global, OddKey
from rescale_cli.errors import BadCheckpoint, UnsafePickle

MARKER = Path("/tmp/rescale-cli-was-run")
RUN = f"touch {MARKER}"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def call(module: str, name: str, *args: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(args) + b"tR"


def stack_call(module: str, name: str, *args: bytes) -> bytes:
    return text(module) + text(name) + b"\x93(" + b"".join(args) + b"tR"


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


COMMAND = text(RUN)
CODE = text(f"open({str(MARKER)!r}, 'w')")
GET_SYSTEM = call("builtins", "getattr", call("builtins", "__import__", text("os")), text("system"))

#: Payloads that run something (or read, write, fetch something) when Python unpickles them.
LIVE = {
    "os.system": call("os", "system", COMMAND),
    "posix.system": call("posix", "system", COMMAND),
    "nt.system": call("nt", "system", COMMAND),
    "stack global": stack_call("os", "system", COMMAND),
    "INST": b"(" + COMMAND + b"ios\nsystem\n",
    "OBJ": b"(" + named("os", "system") + COMMAND + b"o",
    "NEWOBJ": named("subprocess", "Popen") + COMMAND + b"\x85\x81",
    "NEWOBJ_EX": named("subprocess", "Popen") + COMMAND + b"\x85}\x92",
    "Popen": call("subprocess", "Popen", COMMAND),
    "eval": call("builtins", "eval", CODE),
    "exec": call("builtins", "exec", CODE),
    "python 2's eval": call("__builtin__", "eval", CODE),
    "compile": call("builtins", "compile", CODE, text("x"), text("exec")),
    "open": call("builtins", "open", text(str(MARKER)), text("w")),
    "getattr chain": GET_SYSTEM + COMMAND + b"\x85R",
    "getattr of a class": call(
        "builtins", "getattr", named("pathlib", "Path"), text("write_text")
    ) + call("pathlib", "Path", text(str(MARKER))) + text("x") + b"\x86R",
    "getattr of a submodule": call(
        "builtins", "getattr", call("builtins", "getattr", named("torch", "serialization"),
        text("os")), text("system"),
    ) + COMMAND + b"\x85R",
    "map": call("builtins", "map", named("os", "system"), b"]" + COMMAND + b"a"),
    "importlib": call("importlib", "import_module", text("antigravity")),
    "runpy": call("runpy", "run_path", text("x.py")),
    "runpy dotted": call("runpy", "_run_code", CODE, b"}"),
    "pkgutil": call("pkgutil", "resolve_name", text("os:system")) + COMMAND + b"\x85R",
    "pip": call("pip", "main", b"]"),
    "ctypes": call("ctypes", "CDLL", text("libc.so.6")),
    "socket": call("socket", "create_connection", text("x"), b"K\x01"),
    "shutil": call("shutil", "rmtree", text("/tmp/x")),
    "pty": call("pty", "spawn", COMMAND),
    "webbrowser": call("webbrowser", "open", text("http://x")),
    "timeit": call("timeit", "timeit", CODE),
    "trace": call("trace", "Trace.run", CODE),
    "cProfile": call("cProfile", "run", CODE),
    "profile": call("profile", "Profile.run", CODE),
    "bdb": call("bdb", "Bdb.run", CODE),
    "pdb": call("pdb", "run", CODE),
    "doctest": call("doctest", "debug_script", CODE),
    "pydoc": call("pydoc", "pipepager", text("x"), COMMAND),
    "code": call("code", "InteractiveInterpreter.runcode", CODE),
    "asyncio": call("asyncio.unix_events", "_UnixSubprocessTransport._start", COMMAND),
    "idlelib": call("idlelib.autocomplete", "AutoComplete.get_entity", CODE),
    "lib2to3": call("lib2to3.pgen2.grammar", "Grammar.loads", COMMAND),
    "ensurepip": call("ensurepip", "_run_pip", b"]"),
    "_osx_support": call("_osx_support", "_read_output", COMMAND),
    "_aix_support": call("_aix_support", "_read_cmd_output", COMMAND),
    "_pyrepl": call("_pyrepl.pager", "pipe_pager", text("x"), COMMAND),
    "imaplib": call("imaplib", "IMAP4_stream", COMMAND),
    "uuid": call("uuid", "_get_command_stdout", COMMAND),
    "test.support": call("test.support.script_helper", "assert_python_ok", text("-c"), CODE),
    "logging.config": call("logging.config", "dictConfig", b"}"),
    "logging.FileHandler": call("logging", "FileHandler", text(str(MARKER))),
    "linecache": call("linecache", "getlines", text("/etc/passwd")),
    "smtplib": call("smtplib", "SMTP", text("x")),
    "requests": call("requests.api", "get", text("http://x")),
    "urllib": call("urllib.request", "urlopen", text("http://x")),
    "sqlite3": call("sqlite3", "connect", text("/tmp/x")),
    "multiprocessing": call("multiprocessing.util", "spawnv_passfds", b"]"),
    "operator": call("operator", "attrgetter", text("system")) + named("os", "x") + b"\x85R",
    "methodcaller": call("_operator", "methodcaller", text("system"), COMMAND),
    "getitem of modules": call("_operator", "getitem", named("sys", "modules"), text("os")),
    "partial": call("functools", "partial", named("os", "system"), COMMAND) + b")R",
    "partial called": call("functools", "partial", named("my.mod", "f"), COMMAND) + b")R",
    "reduce": call("functools", "reduce", named("builtins", "eval"), b"]" + CODE + b"a"),
    "types.CodeType": call("types", "CodeType", b"K\x00"),
    "types.FunctionType": call("types", "FunctionType", b"N", b"}"),
    "marshal": call("marshal", "loads", b"C\x01N"),
    "nested pickle": call("_pickle", "loads", b"C\x03N.."),
    "nested by numpy": call("numpy", "load", text("x.npy")),
    "nested by torch": call("torch", "load", text("x.pt")),
    "nested by storage": call("torch.storage", "_load_from_bytes", b"C\x01x"),
    "nested by dill": call("dill._dill", "_create_code", b"K\x00"),
    "nested by joblib": call("joblib", "load", text("x")),
    "pandas": call("pandas", "read_pickle", text("http://x")),
    "pandas.eval": call("pandas", "eval", text("@x")),
    "torch.hub": call("torch.hub", "load", text("a/b"), text("c")),
    "torch through serialization": call("torch", "serialization.os.system", COMMAND),
    "torch through a longer path": stack_call("torch.nn", "modules.torch.os.system", COMMAND),
    "dotted class of another module": call("collections", "abc.sys.modules.Os", COMMAND),
    "Popen by another name": call("torch.utils.data.x", "Popen", COMMAND),
    "collect_env": call("torch.utils.collect_env", "run", COMMAND),
    "bottleneck": call("torch.utils.bottleneck.__main__", "run_autograd_prof", CODE, b"}"),
    "cpp_extension": call("torch.utils.cpp_extension", "load_inline", text("x")),
    "jit": call("torch.jit.unsupported_tensor_ops", "execWrapper", CODE, b"}", b"}"),
    "inductor": call("torch._inductor.codecache", "compile_file", text("x")),
    "guards": call("torch._dynamo.guards", "GuardBuilder.get", CODE),
    "symbolic shapes": call(
        "torch.fx.experimental.symbolic_shapes", "ShapeEnv.evaluate_guards_expression", CODE
    ),
    "graph module": call("torch.fx.graph_module", "reduce_graph_module", b"}", text("x")),
    "config module": call("torch.utils._config_module", "ConfigModule.load_config", b"C\x01x"),
    "numpy.testing": call("numpy.testing._private.utils", "runstring", CODE, b"}"),
    "numpy.f2py": call("numpy.f2py.crackfortran", "getlincoef", CODE, b"}"),
    "copyreg": call("copyreg", "__newobj__", named("subprocess", "Popen"), COMMAND),
    "copyreg adds": call("copyreg", "add_extension", text("os"), text("system"), b"K\x01"),
    "_reconstructor": call("copy_reg", "_reconstructor", named("os", "system"), COMMAND, b"N"),
    "setstate": named("my.mod", "Cls") + b")\x81}" + text("__setstate__") + named("os", "system")
    + b"sb" + COMMAND + b"b",
    "second state": named("my.mod", "Cls") + b")\x81}" + text("__setstate__")
    + named("my.mod", "f") + b"sb" + COMMAND + b"b",
    "class attributes": named("my.mod", "Cls") + b"}" + text("x") + b"K\x01sb",
    "persistent id": COMMAND + b"Q",
    "persistent id in text": b"Pos.system\n",
    "extension code": b"\x82\x01",
    "extension code, long": b"\x84\x01\x00\x00\x00",
    "full-width letters": call("\uff4f\uff53", "system", COMMAND),
    "homoglyph": call("\u043es", "system", COMMAND),
    "hidden characters": call("os\u200b", "system", COMMAND),
    "function of a project": call("my.project.hooks", "on_load", COMMAND),
    "method of a class": call("my.project", "Model.from_file", COMMAND),
    "lower-case class called": call("my.project", "runner", COMMAND),
    "behind a POP": call("os", "system", COMMAND) + b"0N",
    "in a key": b"}" + call("os", "system", COMMAND) + b"Ns",
    "never called": named("os", "system"),
    "in the memo": named("os", "system") + b"q\x000N",
    "typing getitem": call("_operator", "getitem", call("my.mod", "Cls"), text("x")),
}  # fmt: skip


@pytest.mark.parametrize("name", LIVE)
def test_a_malicious_payload_is_refused_and_not_run(name: str) -> None:
    for framed in (LIVE[name] + b".", b"\x80\x04" + LIVE[name] + b"."):
        with pytest.raises((UnsafePickle, BadCheckpoint)) as caught:
            load_pickle(framed)
        assert caught.value.fix
        assert caught.value.saw
        assert caught.value.exit_code == 3
    assert not MARKER.exists()


def test_almost_every_payload_is_refused_as_unsafe_by_name() -> None:
    damaged = []
    for name, payload in LIVE.items():
        try:
            load_pickle(payload + b".")
        except UnsafePickle:
            pass
        except BadCheckpoint:
            damaged.append(name)
    assert damaged == ["second state", "persistent id", "persistent id in text"]


def test_the_error_gives_the_option_to_type() -> None:
    with pytest.raises(UnsafePickle) as caught:
        load_pickle(LIVE["os.system"] + b".")
    assert caught.value.saw == "os.system"
    assert "--accept-global os.system" in caught.value.fix


def test_an_accepted_global_is_still_not_run() -> None:
    loaded = load_pickle(LIVE["os.system"] + b".", accept=frozenset({"os.system"}))
    assert isinstance(loaded.value, Built)
    assert loaded.called == {"os.system"}
    assert not MARKER.exists()


def test_the_result_of_an_accepted_call_is_not_called() -> None:
    accept = frozenset({"builtins.getattr", "builtins.__import__"})
    with pytest.raises(UnsafePickle, match="something that it has built"):
        load_pickle(LIVE["getattr chain"] + b".", accept=accept)


def test_code_stored_by_cloudpickle_is_refused_with_a_fix() -> None:
    cloudpickle = pytest.importorskip("cloudpickle", reason="needs cloudpickle, as MLflow uses it")

    class Network:  # a class of a function, notebook or script is stored with its code
        def forward(self) -> int:
            return 1

    for stored in (Network(), lambda: 1):
        with pytest.raises(UnsafePickle, match="stored by cloudpickle") as caught:
            load_pickle(cloudpickle.dumps(stored))
        assert "torch.save(model.state_dict(), 'w.pth')" in caught.value.fix
    assert load_pickle(cloudpickle.dumps(Path())).named  # a class of a module is only named


class Colour(enum.Enum):
    RED = 1


class Mapping(dict[str, int]):
    """A dict with attributes, as configurations often are."""


HARMLESS: list[Any] = [
    argparse.Namespace(lr=0.1, model="resnet"), pathlib.PosixPath("/data"), Colour.RED,
    datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), datetime.timedelta(1),
    np.float64(0.5), np.arange(3), np.random.get_state(), np.random.default_rng(0),
    random.getstate(), collections.OrderedDict(a=1), collections.defaultdict(list, {1: [2]}),
    collections.Counter("abc"), collections.deque([1]), {1, 2}, frozenset([1]), slice(1), 1 + 2j,
    range(3),
    decimal.Decimal(1), uuid.uuid4(), fractions.Fraction(1, 2), types.SimpleNamespace(a=1),
    functools.partial(argparse.Namespace, a=1), typing.Any, list[int], bytearray(b"x"),
    Mapping(a=1), np.dtype("float32"),
    np.array(["a", "b"]), np.array(["a", None], object), "\ud800",
    typing.Literal["a"], 10**40, -1, 1.5, None, True, b"x" * 300, "x" * 300, "é" * 300, (1, (2,)),
    type(None), Ellipsis, int, print.__class__ is None,
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_the_usual_contents_of_checkpoints_are_accepted(protocol: int) -> None:
    for value in HARMLESS:
        data = pickle.dumps([value], protocol)
        loaded = load_pickle(data)
        assert loaded.stop == len(data)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_equal_those_of_pickle(protocol: int) -> None:
    value = {
        "ints": [0, 1, -1, 255, 256, 65536, -(2**31), 2**31, 2**80, -(2**80)],
        "floats": [0.5, -1e300, float("inf")], "texts": ["", "é\n\\'", "x" * 70000],
        "nested": {"a": [{}, [], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]}, 1: None, False: True,
        "od": collections.OrderedDict([("b", 1), ("a", 2)]),
    }  # fmt: skip
    loaded = load_pickle(pickle.dumps(value, protocol))
    assert loaded.value == value
    assert loaded.named <= {"collections.OrderedDict", "copy_reg._reconstructor"}


def test_texts_of_python_2_are_read() -> None:
    pickled = b"(dp0\nS'caf\\xc3\\xa9'\np1\nI1\nsS\"it's\"\np2\nU\x02\xff\xfes."
    assert load_pickle(pickled).value == {"café": 1, "it's": "\xff\xfe"}


def test_several_pickles_follow_one_another() -> None:
    data = pickle.dumps([1], 2) + pickle.dumps("two", 4)
    first = load_pickle(data)
    assert first.value == [1]
    assert load_pickle(data, first.stop).value == "two"


def test_a_class_is_replaced_by_a_stand_in_and_listed() -> None:
    state = b"}" + text("fc") + b"K\x01sb"
    loaded = load_pickle(b"\x80\x02" + named("__main__", "Net") + b")\x81" + state + b".")
    assert isinstance(loaded.value, Built)
    assert loaded.value.func.full == "__main__.Net"
    assert loaded.value.state == {"fc": 1}
    assert loaded.named == loaded.called == {"__main__.Net"}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch._C._nn", "gelu"), ("torch.nn.functional", "relu"), ("my.module", "loss_fn"),
        ("mycompany.code.config", "Config"), ("src.commands.io.types", "Outer.Inner"),
        ("__torch__.torch.nn", "___torch_mangle_0.Linear"),
        ("transformers_modules.a-b.modeling", "Model"), ("typing", "Any"),
    ],
)  # fmt: skip
def test_a_global_that_is_not_called_is_listed(module: str, name: str) -> None:
    if name.startswith("___"):
        module, name = f"{module}.___torch_mangle_0", "Linear"
    loaded = load_pickle(named(module, name) + b".")
    assert isinstance(loaded.value, Global)
    assert loaded.named == {f"{module}.{name}"}
    assert loaded.called == frozenset()


def test_the_enum_members_of_python_3_11_are_accepted() -> None:
    loaded = load_pickle(call("builtins", "getattr", named("my", "Mode"), text("TRAIN")) + b".")
    assert "my.Mode" in loaded.named


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"N", b"NN.", b"(.", b"t.", b"(NNd", b"(Nd.", b"}N.", b"K", b"h\x00.", b"g9\n.",
        b"\x80\x06N.", b"\x80", b"\xff.", b"X\xff\xff\xff\xffab.", b"\x8e" + b"\xff" * 8 + b".",
        b"\x8b\xff\xff\xff\xff.", b"\x8b\xff\xff\xff\x7f.", b"T\xff\xff\xff\xff.", b"I9",
        b"I" + b"9" * 5000 + b"\n.", b"Lx\n.", b"Fx\n.", b"S'x\n.",
        b"S'\\q'\n.", b"V\\ud8\n.", b"cx\n", b"c\xff\nx\n.", b"\x95" + b"\xff" * 8 + b"N.",
        b"N(a.", b"(NNs.", b"K\x01b.", b"N}b.", b"\x97.", b"\x98.", b"NR.", b"NN\x81.", b"(o.",
        b"K\x01K\x02\x93.", b"\x86.", b"K\x01\x86.", b"(K\x01\x86.", b"1.", b"0.", b"2.", b"\x94.",
        b"e.", b"(e.", b"u.", b"(u.", b"N(Nu.", b"ccollections\nOrderedDict\nN\x85R",
        b"ccollections\nOrderedDict\nK\x01\x85R.",
        b"ccollections\nOrderedDict\n](K\x01K\x02e\x85R.",
        b"ccopyreg\n__newobj__\n)R.", b"ccopyreg\n__newobj_ex__\n)R.",
        b"ccopyreg\n_reconstructor\n)R.",
    ],
)  # fmt: skip
def test_bytes_that_are_not_a_pickle_are_a_bad_checkpoint(data: bytes) -> None:
    with pytest.raises((BadCheckpoint, UnsafePickle)) as caught:
        load_pickle(data)
    assert caught.value.saw
    assert caught.value.fix


def test_every_opcode_is_known() -> None:
    codes = {ord(op.code): op.name for op in pickletools.opcodes}
    missing = {name for code, name in codes.items() if code not in OPCODES}
    assert missing == {"STOP", "NEXT_BUFFER", "READONLY_BUFFER"}
    assert set(OPCODES) < set(codes)


def test_a_memo_index_of_four_billion_needs_no_memory() -> None:
    assert load_pickle(b"Nr\xf0\xff\xff\xff0j\xf0\xff\xff\xff.").value is None


def within(seconds: float, data: bytes) -> None:
    began = time.process_time()
    with contextlib.suppress(BadCheckpoint, UnsafePickle):
        load_pickle(data)
    assert time.process_time() - began < seconds


def test_deep_nesting_does_not_recurse() -> None:
    deep = load_pickle(b"]" * 100_000 + b"a" * 99_999 + b".").value
    assert deep
    load_pickle(b"N" + b"\x85" * 100_000 + b".")
    assert load_pickle(named("my", "C") * 50_000 + b")R" + b"\x85R" * 49_999 + b".").value


def test_no_bomb_takes_a_long_time() -> None:
    # A tuple that holds the one before twice, used as a key: hashing it takes 2**60 steps.
    within(5, b"}" + b"N" + b"2\x86" * 60 + b"Ns.")
    # The same list turned into a dictionary again and again.
    within(5, b"](" + b"NN\x86" * 20_000 + b"eq\x00" + b"0ccollections\nOrderedDict\nq\x010"
           + b"h\x01h\x00\x85R0" * 20_000 + b"N.")  # fmt: skip
    # Integers whose hashes are all 0.
    prime = (1 << 61) - 1
    keys = b"".join(
        b"\x8a\x0b" + (i * prime).to_bytes(11, "little", signed=True) + b"N" for i in range(30_000)
    )
    within(5, b"}(" + keys + b"u.")
    # copyreg that makes copyreg.
    inner = b"ccopyreg\n__newobj__\n"
    within(5, inner + b"(" + inner * 20_000 + b"tR.")


def peak_of(data: bytes) -> int:
    """The most memory, in bytes, that reading a pickle takes beyond its own."""
    tracemalloc.start()
    try:
        with contextlib.suppress(BadCheckpoint):
            load_pickle(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("piece", [b"a", rb"\n", rb"\x41", rb"\101"])
def test_a_quoted_text_takes_memory_in_proportion_to_its_length(piece: bytes) -> None:
    count = 2_000_000
    quoted = b"S'" + piece * count + b"'\n."
    assert peak_of(quoted) < 8 * len(quoted)
    assert len(load_pickle(quoted).value) == count


@pytest.mark.parametrize("flood", [b"\x8f", b"]", b"}", b"(", b"N\x94", b"N\x85", b"cmy\nC\n)R"])
def test_too_many_objects_are_refused_at_the_memory_limit(
    flood: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = 1 << 22
    monkeypatch.setattr(pickle_machine, "MAX_MEMORY", allowed)
    assert peak_of(flood * 500_000 + b".") < 2 * allowed
    with pytest.raises(BadCheckpoint, match="byte"):
        load_pickle(flood * 500_000 + b".")


def test_a_key_that_cannot_be_hashed_safely_is_wrapped() -> None:
    (key,) = load_pickle(b"}K\x01K\x02\x86Ns.").value
    assert isinstance(key, OddKey)
    assert key.value == (1, 2)


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_no_other_error(data: bytes) -> None:
    with contextlib.suppress(BadCheckpoint, UnsafePickle):
        load_pickle(data)


CODES = sorted(OPCODES)


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(CODES), st.integers(0, 10)), max_size=60))
def test_random_opcodes_raise_no_other_error(codes: list[int]) -> None:
    with contextlib.suppress(BadCheckpoint, UnsafePickle):
        load_pickle(bytes(codes) + b".")


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 5), st.data())
def test_a_damaged_pickle_raises_no_other_error(protocol: int, data: st.DataObject) -> None:
    raw = bytearray(pickle.dumps(HARMLESS[:30], protocol))
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadCheckpoint, UnsafePickle):
        load_pickle(bytes(raw))
