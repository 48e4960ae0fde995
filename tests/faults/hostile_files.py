"""Files of tensors as nobody should write them: with code, or claiming more than they hold."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

CANARY = "CODE_WAS_RUN"


class Code:
    """What makes a folder as soon as it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


class Call:
    """A call that torch's restricted unpickler allows."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


class Storage:
    """A reference to a storage, saying how many floats it has."""

    def __init__(self, numbers: int, key: str = "0") -> None:
        self.numbers, self.key = numbers, key


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]  # in Python, to write protocol 2 alone
    legacy = False

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Storage):
            reference = ("storage", torch.FloatStorage, value.key, "cpu", value.numbers)
            return (*reference, None) if self.legacy else reference
        return None


def tensor(storage: Storage, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def archive(content: Any, storages: dict[str, bytes], packed: int = zipfile.ZIP_STORED) -> bytes:
    """As torch.save writes it, with any content: what is declared need not be there."""
    pickled = content if isinstance(content, bytes) else dumped(content)
    parts = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"}
    parts |= {f"data/{key}": data for key, data in storages.items()}
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", packed) as file:
        for name, data in parts.items():
            file.writestr(f"archive/{name}", data)
    return memory.getvalue()


def dumped(content: Any) -> bytes:
    memory = io.BytesIO()
    _Pickler(memory, 2).dump(content)
    return memory.getvalue()


def legacy(content: Any, declared: int, storage: bytes) -> bytes:
    """As torch.save wrote it before 1.6: pickles one after the other, then the storages."""
    memory = io.BytesIO()
    pickle.dump(0x1950A86A20F9469CFC6C, memory, 2)
    pickle.dump(1001, memory, 2)
    machine = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    pickle.dump(machine, memory, 2)
    pickler = _Pickler(memory, 2)
    pickler.legacy = True
    pickler.dump(content)
    pickle.dump(["0"], memory, 2)
    return memory.getvalue() + struct.pack("<q", declared) + storage


def tar(content: Any) -> bytes:
    """As torch.save wrote it in the beginning."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as file:
        for name, data in (("storages", 0), ("tensors", 0), ("pickle", content)):
            pickled = pickle.dumps(data, 2)
            info = tarfile.TarInfo(name)
            info.size = len(pickled)
            file.addfile(info, io.BytesIO(pickled))
    return memory.getvalue()


FEW = b"\0" * 40
ten = Storage(10)
wide = tensor(Storage(1), (1 << 29,), (0,))
"""Half a thousand million numbers that are one."""


def nested(levels: int, share: str = "tuple") -> Any:
    """Tuples that hold the one before twice; hashing or printing the last takes for ever."""
    value: Any = ("x", "y")
    for _ in range(levels):
        value = (value, value)
    return value


def overlapping() -> bytes:
    """An archive whose many parts are the same megabyte."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as file:
        file.writestr("archive/data.pkl", dumped({"a": tensor(Storage(1 << 18), (1 << 18,), (1,))}))
        file.writestr("archive/data/0", bytes(1 << 20))
        first = file.getinfo("archive/data/0")
        for number in range(1, 500):
            info = zipfile.ZipInfo(f"archive/data/{number}")
            for name in ("header_offset", "compress_size", "file_size", "CRC"):
                setattr(info, name, getattr(first, name))
            file.filelist.append(info)
            file.NameToInfo[info.filename] = info
    return memory.getvalue()


def with_part(name: str) -> bytes:
    """An archive with one part more."""
    memory = io.BytesIO(archive({"a": tensor(ten, (10,), (1,))}, {"0": FEW}))
    with zipfile.ZipFile(memory, "a") as file:
        file.writestr(name, b"outside")
    return memory.getvalue()


CARRIES_CODE: dict[str, Callable[[], bytes]] = {
    "archive": lambda: archive(Code(), {}),
    "archive, deep in a weight's name": lambda: archive({"a": {"b": [Code()]}}, {"0": FEW}),
    "archive, in place of a shape": lambda: archive(
        {"a": Call(torch._utils._rebuild_tensor_v2, ten, 0, Code(), (1,), False, OrderedDict())}, {"0": FEW}
    ),
    "archive, second pickle": lambda: _second_pickle(),
    "raw pickle": lambda: pickle.dumps(Code(), 2),
    "raw pickle, text protocol": lambda: pickle.dumps(Code(), 0),
    "raw pickle, protocol 5": lambda: pickle.dumps(Code(), 5),
    "legacy": lambda: legacy({"a": Code()}, 10, FEW),
    "legacy, as magic number": lambda: pickle.dumps(Code(), 2) + legacy({}, 10, FEW),
    "legacy, as names of storages": lambda: legacy({}, 10, FEW)[:-60] + pickle.dumps(Code(), 2),
    "tar": lambda: tar(Code()),
    "eval": lambda: archive({"a": Call(eval, f"__import__('os').mkdir('{CANARY}')")}, {}),
    "a function of torch": lambda: archive({"a": Call(torch.hub.load, "somebody/model", "net")}, {}),
}

CLAIMS_MORE: dict[str, Callable[[], bytes]] = {
    "packed": lambda: archive(
        {"a": tensor(Storage(1 << 28), (1 << 28,), (1,))}, {"0": bytes(1 << 30)}, zipfile.ZIP_DEFLATED
    ),
    "a storage shorter than declared": lambda: archive({"a": tensor(ten, (10,), (1,))}, {"0": b"\0" * 8}),
    "a storage of a terabyte": lambda: archive({"a": tensor(Storage(1 << 38), (1 << 38,), (1,))}, {"0": FEW}),
    "a tensor longer than its storage": lambda: archive({"a": tensor(ten, (1 << 30,), (1,))}, {"0": FEW}),
    "an offset before the storage": lambda: archive({"a": tensor(ten, (10,), (1,), -5)}, {"0": FEW}),
    "an offset behind the storage": lambda: archive({"a": tensor(ten, (10,), (1,), 1 << 40)}, {"0": FEW}),
    "a negative stride": lambda: archive({"a": tensor(ten, (10,), (-1,), 9)}, {"0": FEW}),
    "a size that overflows": lambda: archive({"a": tensor(ten, (1 << 62, 4), (4, 1))}, {"0": FEW}),
    "one number repeated": lambda: archive({"a": wide}, {"0": b"\0" * 4}),
    "one number repeated, and copied": lambda: archive(
        {"a": Call(torch._utils._rebuild_device_tensor_from_cpu_tensor, wide, torch.float64, "cpu", False)},
        {"0": b"\0" * 4},
    ),
    "no storage at all": lambda: archive({"a": tensor(ten, (10,), (1,))}, {}),
    "parts that overlap": overlapping,
    "legacy, a storage of a terabyte": lambda: legacy(
        {"a": tensor(Storage(1 << 38), (10,), (1,))}, 1 << 38, FEW
    ),
    "legacy, more declared than there is": lambda: legacy({"a": tensor(ten, (10,), (1,))}, 1 << 31, FEW),
    "legacy, less than none": lambda: legacy({"a": tensor(ten, (10,), (1,))}, -1, FEW),
    "a billion shared tuples as name": lambda: archive(
        b"\x80\x02}" + _shared_tuple_pickle(40) + b"K\x01s.", {}
    ),
    "marks without end": lambda: archive(b"\x80\x02" + b"(" * ((1 << 20) + 9) + b".", {}),
    "a text longer than the file": lambda: archive(b"\x80\x02X\xff\xff\xff\x7fabc.", {}),
    "a gigabyte of zeros": lambda: archive({"a": Call(bytearray, 1 << 30)}, {}),
    "no archive of torch": lambda: with_nothing(),
}


def _second_pickle() -> bytes:
    memory = io.BytesIO(archive({"a": tensor(ten, (10,), (1,))}, {"0": FEW}))
    with zipfile.ZipFile(memory, "a") as file:
        file.writestr("archive/more.pkl", pickle.dumps(Code(), 2))
    return memory.getvalue()


def _shared_tuple_pickle(levels: int) -> bytes:
    """Operations that leave such a tuple: each level remembers the one before and takes it twice."""
    operations = b"K\x01\x85q\x00"
    for level in range(levels):
        operations += b"0h" + bytes([level]) + b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])
    return operations


def with_nothing() -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as file:
        file.writestr("readme.txt", b"hello")
    return memory.getvalue()
