"""Decide what a checkpoint's pickle may name and call, and define the stand-ins for these.

Nothing in a pickle is ever run here, so this is not the security boundary but a second check: a
file that is refused could do something in `torch.load` that no checkpoint needs. Three rules:

1. Names in modules that reach outside (os, subprocess, importlib ...) are refused.
2. Calls of functions are refused unless they are in `FUNCTIONS`; calls of classes are listed.
3. Names are checked as a whole and by part, so that `torch` + `serialization.os.system` is found.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from rescale_cli.core.floats import ITEM_SIZES
from rescale_cli.errors import UnsafePickle


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A class or function that a pickle names; it is never imported."""

    module: str
    name: str
    full: str = field(init=False)
    """`module.name`, as `--accept-global` takes it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "full", f"{self.module}.{self.name}")


def _words(text: str) -> list[str]:
    return text.split()


#: Modules from which (and from whose submodules) nothing may be named.
REFUSED = frozenset(
    _words("""
    os nt posix posixpath ntpath genericpath subprocess _posixsubprocess _winapi winreg _winreg
    sys _sys builtins __builtin__ __builtins__ importlib _frozen_importlib imp
    _frozen_importlib_external _imp runpy pkgutil zipimport zipapp ctypes _ctypes cffi
    _cffi_backend socket _socket socketserver ssl _ssl select selectors shutil pty tty popen2
    commands code codeop codecs pickle _pickle cPickle pickletools marshal shelve dill cloudpickle
    joblib jsonpickle copyreg copy_reg _codecs io _io _pyio tempfile fileinput linecache glob mmap
    webbrowser antigravity types _types inspect dis ast _ast compileall py_compile operator
    _operator itertools multiprocessing threading _thread _threading concurrent asyncio _asyncio
    signal _signal faulthandler atexit gc sched pdb bdb cProfile profile pstats timeit trace
    tracemalloc doctest pydoc unittest pytest _pytest pip ensurepip venv virtualenv distutils
    setuptools pkg_resources easy_install _distutils_hack site sitecustomize usercustomize idlelib
    lib2to3 turtledemo tkinter turtle urllib urllib2 http httplib ftplib smtplib smtpd poplib
    imaplib nntplib telnetlib xmlrpc requests urllib3 paramiko pexpect sqlite3 dbm _dbm tarfile
    zipfile getpass crypt resource fcntl msvcrt _osx_support _aix_support _pyrepl rlcompleter
    readline wsgiref cgi cgitb torch.hub torch.jit torch._jit_internal torch.load torch.save
    torch.package torch.fx torch.compile torch.ops torch.classes torch.serialization torch.storage
    torch.utils.cpp_extension torch.utils.bottleneck torch.utils.collect_env torch.utils.dlpack
    torch.utils._content_store torch.utils._config_module torch.utils.model_zoo
    torch.utils.data.datapipes torch._inductor torch._export torch.export torch.multiprocessing
    torch.distributed.elastic torch.distributed.run torch.distributed.launch torch.distributed.rpc
    torch.cuda._gdb torch._utils_internal torch.utils.hipify torch._custom_ops
    torch.utils.benchmark numpy.load numpy.save numpy.fromfile numpy.memmap numpy.loadtxt
    numpy.genfromtxt numpy.savetxt numpy.testing numpy.f2py numpy.distutils numpy.ctypeslib
    numpy.lib numpy.compat numpy.core.records.fromfile logging.config logging.handlers
    logging.FileHandler keras.layers.Lambda pandas.read_pickle pandas.io pandas.eval
    pandas.core.computation torch._dynamo.guards
    """)
)

_CONTAINERS = _words("""
    set frozenset list dict tuple bytearray bytes complex object int float str bool
    slice range type NoneType Ellipsis NotImplemented unicode long xrange""")

#: Names that are allowed although their module is refused.
EXCEPTIONS = frozenset(
    [f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _CONTAINERS]
    + _words("""
    builtins.getattr __builtin__.getattr operator.getitem _operator.getitem
    types.SimpleNamespace types.NoneType types.GenericAlias types.UnionType types.MappingProxyType
    _codecs.encode copyreg._reconstructor copy_reg._reconstructor copyreg.__newobj__
    copy_reg.__newobj__ copyreg.__newobj_ex__ copy_reg.__newobj_ex__
    torch.storage.UntypedStorage torch.storage.TypedStorage torch.storage._UntypedStorage
    torch.storage._TypedStorage torch.serialization._get_layout
    torch.jit._pickle.build_intlist torch.jit._pickle.build_tensorlist
    torch.jit._pickle.build_doublelist torch.jit._pickle.build_boollist
    torch.jit._pickle.build_tensor_from_id torch.jit._pickle.restore_type_tag
    """)
)

#: The functions (and lower-case types) that may be called, because they only build plain data.
FUNCTIONS = frozenset(
    [name for name in EXCEPTIONS if not name.endswith((".getattr", ".getitem", ".type"))]
    + [
        f"torch._utils._rebuild_{name}"
        for name in _words("""tensor tensor_v2 tensor_v3 parameter parameter_with_state qtensor
        sparse_tensor sparse_csr_tensor nested_tensor meta_tensor_no_storage wrapper_subclass
        device_tensor_from_numpy device_tensor_from_cpu_tensor xla_tensor""")
    ]
    + [
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ]
    + _words("""
    torch._tensor._rebuild_from_type_v2 torch._tensor._rebuild_from_type
    torch.tensor._rebuild_from_type torch.device torch.dtype
    numpy.core.numeric._frombuffer numpy._core.numeric._frombuffer
    numpy.ndarray numpy.dtype numpy.matrix numpy.recarray numpy.ma.core._mareconstruct
    numpy.random.__RandomState_ctor numpy.random._pickle.__randomstate_ctor
    numpy.random._pickle.__generator_ctor numpy.random._pickle.__bit_generator_ctor
    collections.defaultdict collections.deque
    datetime.datetime datetime.date datetime.time datetime.timedelta datetime.timezone
    zoneinfo.ZoneInfo._unpickle functools.partial functools._compose re._compile
    array.array array._array_reconstructor logging.getLogger fractions.Fraction
    """)
)

#: Parts of a name (after the module) that are refused in any module.
_WAYS_OUT = frozenset(
    _words("""
    eval exec execfile system popen Popen check_output check_call getoutput getstatusoutput
    import_module reload FunctionType CodeType LambdaType MethodType spawnl spawnv spawnve
    run_module run_path find_class modules""")
)

_HIDDEN = REFUSED | _WAYS_OUT
_TORCH_BASICS = ("Tensor", "Size", "device", "dtype", "strided")

#: The names with which cloudpickle stores code. It calls their results, so that accepting the names
#: one by one would not help.
_STORES_CODE = frozenset(
    f"cloudpickle.cloudpickle.{name}"
    for name in _words("_make_function _make_skeleton_class _make_skeleton_enum _builtin_type")
)
_NOT_FOR_US = "do not load this file with torch either; ask its author for a plain state dict"


def _below(path: str, roots: Collection[str]) -> bool:
    """Whether the dotted path is one of the roots or below one."""
    parts = path.split(".")
    return any(".".join(parts[: count + 1]) in roots for count in range(len(parts)))


def _refuse(what: str, full: str) -> UnsafePickle:
    shown = ascii(full[:200])[1:-1]
    return UnsafePickle(
        what,
        saw=shown,
        fix=f"if you trust its author: --accept-global {shown} (the code is still not run)",
    )


def check_named(module: str, name: str, accept: Collection[str]) -> None:
    """Refuse a global that no checkpoint needs.

    Args:
        module: the part before the name; only its leading parts are checked, so that
            `mycompany.code.Config` is an ordinary class.
        name: the name; if it is dotted, each part is an attribute of the part before.
        accept: full names that the user accepts.

    Raises:
        UnsafePickle: with the name, and the option that accepts it.

    Example:
        >>> check_named("collections", "OrderedDict", ())
        >>> check_named("torch", "serialization.os.system", ())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        rescale_cli.errors.UnsafePickle: the pickle names something that no checkpoint needs; ...
    """
    full = f"{module}.{name}"
    if full in EXCEPTIONS or full in accept:
        return
    if full in _STORES_CODE:
        raise UnsafePickle(
            "the pickle contains the code of a class or function, stored by cloudpickle",
            saw=full,
            fix="where the model loads, save its weights: torch.save(model.state_dict(), 'w.pth');"
            " or import its class from a module (not a notebook or script) and save it again",
        )
    parts = name.split(".")
    spelled = unicodedata.normalize("NFKC", full)
    plain = full.isprintable() and all(module.split("."))
    plain = plain and all(part.isidentifier() for part in parts)
    if spelled != full or not plain:
        raise _refuse("the pickle contains a disguised or invalid name", full)
    # A name inside a class is ordinary; a name that leads through another module is suspicious.
    detour = any(not _is_class(part) for part in parts[:-1])
    hidden = any(
        part in _HIDDEN or (part.startswith("__") and part.endswith("__")) for part in parts
    )
    if detour or _below(full, REFUSED) or (hidden and full not in FUNCTIONS):
        raise _refuse("the pickle names something that no checkpoint needs", full)


def check_called(
    called: Global, args: Sequence[object], accept: Collection[str], *, new: bool
) -> None:
    """Refuse a call that does more than build a value.

    Args:
        called: the global that would be called; it has passed `check_named`.
        args: the arguments, which matter for three functions.
        accept: full names that the user accepts.
        new: whether the call is `cls.__new__`, which only classes have.

    Raises:
        UnsafePickle: with the name, and the option that accepts it.
    """
    full = called.full
    if full in FUNCTIONS or full in accept:
        return
    name = full.rpartition(".")[2]
    if full not in EXCEPTIONS:
        fine = _is_class(name) or new
    elif name == "getattr":
        fine = _is_enum_member(args)
    elif name == "getitem":  # a generic alias, such as typing.Dict[str, int]
        first = args[0] if args else None
        fine = isinstance(first, Global) and first.module in ("typing", "builtins", "collections")
    else:
        fine = name == "type" and len(args) == 1  # type(None); with three it makes a class
    if not fine:
        raise _refuse("the pickle calls a function that no checkpoint needs", full)


def _is_enum_member(args: Sequence[object]) -> bool:
    """Whether getattr's arguments are a class and a plain name, as Python 3.11.0 wrote enums."""
    if len(args) != 2 or not isinstance(args[0], Global) or not isinstance(args[1], str):
        return False
    owner, member = args[0].name.rpartition(".")[2], args[1]
    plain = member.isidentifier() and not member.startswith("_")
    return plain and _is_class(owner) and member not in _HIDDEN


def not_a_name(saw: str) -> UnsafePickle:
    """Return the error for a call of anything but a global, such as the result of another call."""
    return UnsafePickle("the pickle calls something that it has built", saw=saw, fix=_NOT_FOR_US)


def is_ordinary(full: str) -> bool:
    """Whether the name is common to all checkpoints: tensors and plain containers."""
    module, _, name = full.rpartition(".")
    if module in ("builtins", "__builtin__"):
        return name in _CONTAINERS
    if module == "collections":
        return name in ("OrderedDict", "defaultdict", "Counter", "deque")
    if module in ("torch", "torch.storage", "torch.cuda"):
        return name in ITEM_SIZES or name.endswith("Storage") or name in _TORCH_BASICS
    return full == "torch.nn.parameter.Parameter" or (module[:6] == "torch." and full in FUNCTIONS)


def _is_class(name: str) -> bool:
    """Whether it is spelled like a class, or like the function with which Cython rebuilds one."""
    return name.removeprefix("__pyx_unpickle_").lstrip("_")[:1].isupper()


_HASHED_INTS = 1 << 60  # beyond, integers can be made to collide (hash is modulo 2**61 - 1)


class Built:
    """The stand-in for the result of calling `func` with `args`; nothing was called.

    Not frozen, because a pickle may fill an object after referring to it (to store cycles).
    """

    __slots__ = ("args", "func", "keyed", "kwargs", "listed", "state")

    def __init__(self, func: Global, args: tuple[Any, ...], kwargs: dict[Any, Any] | None) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.state: Any = None
        self.keyed: list[tuple[Any, Any]] = []
        """Items set on it, as on a dict."""
        self.listed: list[Any] = []
        """Elements appended or added, as to a list or set."""


@dataclass(frozen=True, slots=True, eq=False)
class OddKey:
    """A dictionary key that is not hashed by value: a tuple, an object, a huge integer."""

    value: object


def hashable(key: object) -> Any:
    """Return the key itself if hashing it is cheap and safe, otherwise an `OddKey` of it."""
    kind = type(key)
    if kind is str or kind is bytes or key is None or kind is bool or kind is float:
        return key
    if kind is int and -_HASHED_INTS < key < _HASHED_INTS:  # type: ignore[operator]
        return key
    return OddKey(key)
