"""Hostile weight files: what makes them, and a worker that opens each under limits of memory and time.

`python -m tests.hardening.hostile_files DIR` opens every case below DIR and prints one JSON line a case: its name, the
seconds it took, and the class and message of what it raised.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import msgpack
import numpy as np

#: bytes of address space that the worker may take above what it has after its imports
MEMORY = 1 << 30
#: seconds of the processor that a case may take; it may wait twelve times as long
SECONDS = 5
INDEX = "model.safetensors.index.json"

Case = Callable[[Path], None]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Register a function that writes a hostile checkpoint into a directory."""
    CASES[function.__name__] = function
    return function


def several(name: str, make: Callable[[object], Case], options: dict[str, object]) -> None:
    """Register a case for each option."""
    CASES.update({f"{name}_{option}": make(value) for option, value in options.items()})


# -- safetensors ----------------------------------------------------------------------------------------------------


def safetensors(header: object, data: bytes = b"") -> Case:
    """A file with a header, which a function makes where it is long: whoever collects the tests needs names only."""

    def write(directory: Path) -> None:
        made = header() if callable(header) else header
        text = made if isinstance(made, bytes) else json.dumps(made).encode()
        (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)

    return write


def void(_: object) -> None:
    """Drop a value, so that an expression can be a statement of a lambda."""


def tensor(shape: list[object], end: object = 0, dtype: str = "F32") -> dict[str, object]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


HUGE = 2**62
several(
    "safetensors",
    safetensors,  # type: ignore[arg-type]
    {
        "product_of_thousands_of_digits": tensor([HUGE] * 64),
        "more_axes_than_arrays_have": tensor([1] * 65, 4),
        "a_million_axes": lambda: tensor([1] * 1_000_000, 4),
        "zero_beside_huge": tensor([0, HUGE, HUGE]),
        "offset_of_4000_digits": tensor([1], 10**4000),
        "length_of_4000_digits": tensor([10**4000], 4),
        "length_of_5000_digits": b'{"x":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}',
        "metadata_1000_deep": b'{"__metadata__":' + b'{"a":' * 900 + b"1" + b"}" * 901,
        "metadata_million_deep": b'{"__metadata__":' + b'{"a":' * 1_000_000,
        "shape_900_deep": b'{"x":{"dtype":"F32","data_offsets":[0,4],"shape":' + b"[" * 900 + b"]" * 900 + b"}}",
        "type_900_deep": b'{"x":{"shape":[1],"data_offsets":[0,4],"dtype":' + b"[" * 900 + b"]" * 900 + b"}}",
        "entry_900_deep": b'{"x":' + b"[" * 900 + b"]" * 900 + b"}",
        "duplicate_keys_of_17_MB": lambda: b"{" + b",".join([b'"x":1'] * 2_900_000) + b"}",
        "one_key_of_17_MB_twice": lambda: b'{"' + b"k" * 8_500_000 + b'":1,"' + b"k" * 8_500_000 + b'":1}',
        "one_key_of_17_MB": lambda: b'{"' + b"k" * 17_000_000 + b'":1}',
        "five_million_lists": lambda: b'{"x":[' + b",".join([b"[]"] * 5_000_000) + b"]}",
        "a_million_tensors": lambda: b"{" + b",".join(b'"%d":1' % i for i in range(1_000_000)) + b"}",
        "surrogate_in_a_name": b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        "infinity_as_length": b'{"x":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}',
        "nan_as_offset": b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,NaN]}}',
        "null_everywhere": {"x": {"dtype": None, "shape": None, "data_offsets": None}},
        "checksums_million_deep": {"__metadata__": {"longspan.crc32": "[" * 1_000_000}},
        "checksums_of_5000_digits": {
            "__metadata__": {"longspan.crc32": json.dumps({"x": "f" * 5000})},
            **tensor([1], 4),
        },
    },
)


@case
def safetensors_longer_header_than_file(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f{}")


@case
def safetensors_sparse_header_of_90_MB(directory: Path) -> None:
    with (directory / "model.safetensors").open("wb") as file:
        file.write((90_000_000).to_bytes(8, "little") + b"{")
        file.truncate(90_000_008)


# -- indexes --------------------------------------------------------------------------------------------------------


def index(weight_map: object) -> Case:
    text = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
    return lambda directory: void((directory / INDEX).write_text(text))


several(
    "index",
    index,  # type: ignore[arg-type]
    {
        "above": {"x": "../../../etc/passwd"},
        "absolute": {"x": "/etc/passwd"},
        "null_byte": {"x": "a\0b"},
        "of_itself": {"x": INDEX},
        "directory": {"x": "."},
        "empty_name": {"x": ""},
        "long_name": {"x": "a" * 5000},
        "surrogate": '{"weight_map": {"x": "\\ud800"}}',
        "surrogate_key": '{"weight_map": {"\\ud800": "x"}}',
        "missing": {"x": "shard"},
        "number": {"x": 3},
        "list": [["x", "y"]],
        "deep": '{"weight_map": ' + "[" * 100_000,
        "big": '{"weight_map": {"x": ' + "9" * 5000 + "}}",
        "commas": '{"weight_map": [' + "[]," * 5_000_000 + "1]}",
    },
)


@case
def index_through_a_link(directory: Path) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": {"x": "shard"}}))
    (directory / "shard").symlink_to("/etc/passwd")


@case
def index_to_a_fifo(directory: Path) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": {"x": "shard"}}))
    os.mkfifo(directory / "shard")


@case
def index_to_a_device(directory: Path) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": {"x": "shard"}}))
    (directory / "shard").symlink_to("/dev/zero")


@case
def index_in_a_circle_of_links(directory: Path) -> None:
    (directory / INDEX).symlink_to(INDEX)


# -- pickles --------------------------------------------------------------------------------------------------------

STATE = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"


def laughs(levels: int, close: bytes) -> bytes:
    """A value that holds its predecessor ten times, and so on, in a few bytes a level."""
    program = b"K\x01q\x00"
    for level in range(levels):
        program += b"(" + b"".join(b"h" + bytes([level % 256]) for _ in range(10)) + close + b"q" + bytes([level + 1])
    return program


def nested(depth: int) -> bytes:
    return b"K\x01" + b"\x85" * depth


def tensor_call(storage: bytes, start: bytes, shape: bytes, strides: bytes) -> bytes:
    return STATE + b"(" + storage + start + shape + strides + b"\x89}tR"


def whole_number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8b" + len(data).to_bytes(4, "little") + data


def entry(value: bytes) -> bytes:
    return b"}X\x01\x00\x00\x00x" + value + b"s"


ZERO, SIX, ONE = b"K\x00", b"K\x06\x85", b"K\x01\x85"
PROGRAMS = {
    "key_nested_a_very_deep": b"}" + nested(300_000) + b"K\x01s",
    "key_nested_900_deep": b"}" + nested(900) + b"K\x01s",
    "key_of_laughs": b"}" + laughs(60, b"t") + b"K\x01s",
    "value_of_laughs": entry(laughs(60, b"t")),
    "value_of_laughing_lists": entry(laughs(60, b"l")),
    "content_of_laughs": laughs(60, b"t"),
    "content_nested_very_deep": nested(300_000),
    "persistent_id_of_laughs": laughs(60, b"t") + b"Q",
    "persistent_id_nested": nested(100_000) + b"Q",
    "storage_key_of_laughs": STORAGE.replace(b"X\x01\x00\x00\x000", laughs(60, b"t")),
    "storage_key_nested": STORAGE.replace(b"X\x01\x00\x00\x000", nested(100_000)),
    "storage_type_of_laughs": STORAGE.replace(b"ctorch\nFloatStorage\n", laughs(60, b"t")),
    "storage_size_of_5000_digits": entry(STORAGE.replace(b"K\x06t", whole_number(10**5000) + b"t")),
    "shape_of_laughs": entry(tensor_call(STORAGE, ZERO, laughs(60, b"t"), ONE)),
    "shape_nested": entry(tensor_call(STORAGE, ZERO, nested(100_000), ONE)),
    "shape_of_5000_digits": entry(tensor_call(STORAGE, ZERO, whole_number(10**5000) + b"\x85", ONE)),
    "strides_of_5000_digits": entry(tensor_call(STORAGE, ZERO, SIX, whole_number(10**5000) + b"\x85")),
    "start_of_5000_digits": entry(tensor_call(STORAGE, whole_number(10**5000), SIX, ONE)),
    "start_that_is_text": entry(tensor_call(STORAGE, b"X\x01\x00\x00\x00a", SIX, ONE)),
    "shape_that_is_text": entry(tensor_call(STORAGE, ZERO, b"X\x01\x00\x00\x006", b"X\x01\x00\x00\x001")),
    "seventy_axes": entry(tensor_call(STORAGE, ZERO, b"(" + b"K\x01" * 70 + b"t", b"(" + b"K\x01" * 70 + b"t")),
    "zero_beside_huge": entry(
        tensor_call(STORAGE, ZERO, ZERO + whole_number(2**62) * 2 + b"\x87", b"K\x01K\x01K\x01\x87")
    ),
    "tensor_on_text": entry(tensor_call(b"X\x01\x00\x00\x00a", ZERO, SIX, ONE)),
    "number_of_a_million_digits": entry(b"I" + b"9" * 1_000_000 + b"\n"),
    "three_million_instructions": entry(b"K\x01" + b"N0" * 1_500_000),
    "a_million_calls_on_a_long_list": b"](" + b"K\x01" * 50_000 + b"e\x85q\x00"
    + b"ctorch\nSize\nq\x01" + b"h\x01h\x00R0" * 100_000 + b".",
    "dictionary_of_a_dictionary_of_itself": b"}q\x00X\x01\x00\x00\x00xh\x00s",
    "list_of_itself": b"]q\x00h\x00a",
    "ordered_dict_of_nested_pairs": b"ccollections\nOrderedDict\n](" + nested(100_000) + b"K\x01\x86e\x85R",
    "build_on_a_name": b"ctorch\nFloatStorage\n}b",
    "global_of_nested": nested(100_000) + nested(100_000) + b"\x93",
    "eval": b"cbuiltins\neval\nX\x04\x00\x00\x001/0)\x85R",
    "system": b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R",
    "getattr": b"cbuiltins\ngetattr\n",
    "inst": b"(X\x02\x00\x00\x00lsios\nsystem\n",
    "obj": b"(cos\nsystem\nX\x02\x00\x00\x00lso",
    "extension": b"\x82\x01",
    "persid": b"Pfile\n",
    "readonly_buffer": b"\x97\x98",
    "bytearray_of_an_exabyte": b"\x96" + (1 << 60).to_bytes(8, "little"),
    "text_of_an_exabyte": b"\x8d" + (1 << 60).to_bytes(8, "little"),
    "no_mark": b"t" * 10,
    "memo_that_is_not_there": b"h\x07",
    "pop_of_nothing": b"00000",
}  # fmt: skip


def archive(program: object) -> Case:
    def write(directory: Path) -> None:
        with zipfile.ZipFile(directory / "pytorch_model.bin", "w") as file:
            file.writestr("m/data.pkl", b"\x80\x02" + bytes(program) + b".")  # type: ignore[call-overload]
            file.writestr("m/data/0", bytes(24))

    return write


def legacy(program: object) -> Case:
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    tail = pickle.dumps(["0"], 2) + (6).to_bytes(8, "little") + bytes(24)
    content = head + b"\x80\x02" + bytes(program) + b"." + tail  # type: ignore[call-overload]
    return lambda directory: void((directory / "pytorch_model.bin").write_bytes(content))


several("zip", archive, PROGRAMS)  # type: ignore[arg-type]
several("legacy", legacy, PROGRAMS)  # type: ignore[arg-type]


def records(*named: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> Case:
    def write(directory: Path) -> None:
        with (
            warnings.catch_warnings(),
            zipfile.ZipFile(directory / "pytorch_model.bin", "w", compression, allowZip64=True) as file,
        ):
            warnings.simplefilter("ignore")
            for name, data in named:
                file.writestr(name, data)

    return write


SOUND = b"\x80\x02" + entry(tensor_call(STORAGE, ZERO, SIX, ONE)) + b"."
CASES["zip_deflate_bomb"] = records(
    ("m/data.pkl", bytes(50 << 20)), ("m/data/0", bytes(24)), compression=zipfile.ZIP_DEFLATED
)
CASES["zip_twice_the_same_record"] = records(("m/data.pkl", SOUND), ("m/data.pkl", SOUND), ("m/data/0", bytes(24)))
CASES["zip_unused_storage"] = records(("m/data.pkl", SOUND), ("m/data/0", bytes(24)), ("m/data/1", bytes(24)))
CASES["zip_above"] = records(("../m/data.pkl", SOUND), ("m/data/0", bytes(24)))
CASES["zip_of_nothing"] = records()


@case
def zip_with_a_directory_entry_that_lies(directory: Path) -> None:
    """Two records of one size change places in the list of contents."""
    records(("m/data.pkl", SOUND), ("m/data/0", bytes(24)), ("m/data/1", bytes([1]) * 24))(directory)
    path = directory / "pytorch_model.bin"
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    content = content[:start] + content[start:].replace(b"data/0", b"data/?").replace(b"data/1", b"data/0")
    path.write_bytes(content.replace(b"data/?", b"data/1"))


@case
def legacy_system_that_is_no_map(directory: Path) -> None:
    parts = (0x1950A86A20F9469CFC6C, 1001, 7)
    (directory / "pytorch_model.bin").write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))


@case
def legacy_storage_keys_of_laughs(directory: Path) -> None:
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {})
    content = b"".join(pickle.dumps(part, 2) for part in parts) + b"\x80\x02(" + laughs(60, b"t") + b"l."
    (directory / "pytorch_model.bin").write_bytes(content)


# -- msgpack --------------------------------------------------------------------------------------------------------


def array(shape: object, dtype: object = "float32", data: object = b"") -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))


def chunked(shape: object, chunks: object) -> bytes:
    return msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}})


def msgpacked(content: object) -> Case:
    return lambda directory: void((directory / "flax_model.msgpack").write_bytes(content))  # type: ignore[arg-type]


FOUR = array((1,), "float32", bytes(4))
several(
    "msgpack",
    msgpacked,
    {
        "chunks_without_parts": chunked({"0": 1}, {}),
        "chunks_missing": msgpack.packb({"a": {"__msgpack_chunked_array__": True}}),
        "chunks_that_skip_a_number": chunked({"0": 2}, {"0": FOUR, "2": FOUR}),
        "chunks_of_a_negative_length": chunked({"0": -1}, {"0": FOUR}),
        "chunks_of_a_float_length": chunked({"0": 1.0}, {"0": FOUR}),
        "chunks_of_text_length": chunked({"0": "1"}, {"0": FOUR}),
        "chunks_of_huge_lengths": chunked({"0": 2**62, "1": 0}, {"0": FOUR}),
        "chunks_that_are_numbers": chunked({"0": 1}, {"0": 1}),
        "chunks_as_list": chunked([1], [FOUR]),
        "chunks_of_two_types": chunked({"0": 2}, {"0": FOUR, "1": array((1,), "int32", bytes(4))}),
        "shape_of_floats": msgpack.packb({"a": array((1.0,), "float32", bytes(4))}),
        "shape_of_texts": msgpack.packb({"a": array(("1",), "float32", bytes(4))}),
        "shape_of_booleans": msgpack.packb({"a": array((True,), "float32", bytes(4))}),
        "shape_that_is_a_number": msgpack.packb({"a": array(1, "float32", bytes(4))}),
        "shape_negative": msgpack.packb({"a": array((-1, -1), "float32", bytes(4))}),
        "shape_zero_beside_huge": msgpack.packb({"a": array((0, 2**63, 2**63), "float32", b"")}),
        "shape_of_70_axes": msgpack.packb({"a": array((1,) * 70, "float32", bytes(4))}),
        "dtype_that_is_a_number": msgpack.packb({"a": array((1,), 4, bytes(4))}),
        "dtype_that_is_a_list": msgpack.packb({"a": array((1,), ["float32"], bytes(4))}),
        "dtype_unknown": msgpack.packb({"a": array((1,), "float31", bytes(4))}),
        "dtype_in_bytes": msgpack.packb({"a": array((1,), b"\xff\xfe", bytes(4))}),
        "dtype_of_a_megabyte": msgpack.packb({"a": array((1,), "f" * 1_000_000, bytes(4))}),
        "data_that_is_text": msgpack.packb({"a": array((1,), "float32", "abcd")}),
        "array_in_an_array": msgpack.packb({"a": array((1,), "float32", FOUR)}),
        "leaf_of_text": msgpack.packb({"a": "x" * 1_000_000}),
        "key_of_a_megabyte": msgpack.packb({"k" * 1_000_000: FOUR}),
        "lists_50_MB_deep": b"\x81\xa1a" + b"\x91" * 50_000_000,
        "lists_50_MB_wide": b"\x81\xa1a\xdd\x02\xfa\xf0\x80" + b"\x90" * 50_000_000,
        "maps_deep": b"\x81\xa1a" * 100_000,
        "list_of_four_billion": b"\x81\xa1a\xdd\xff\xff\xff\xff",
        "map_of_four_billion": b"\xdf\xff\xff\xff\xff",
        "text_of_four_billion": b"\x81\xdb\xff\xff\xff\xff",
        "bytes_of_four_billion": b"\x81\xa1a\xc6\xff\xff\xff\xff",
        "invalid_text": b"\x81\xa2\xff\xfe\xc0",
        "two_values": msgpack.packb({"a": FOUR}) + msgpack.packb({"b": FOUR}),
    },
)


# -- HDF5 -----------------------------------------------------------------------------------------------------------


def hdf5(fill: object) -> Case:
    def write(directory: Path) -> None:
        with h5py.File(directory / "tf_model.h5", "w") as file:
            fill(file)  # type: ignore[operator]

    return write


def loop(file: h5py.File) -> None:
    group = file.create_group("bert")
    group["again"] = group


def two_parents(file: h5py.File) -> None:
    group = file.create_group("bert/a")
    for name in "bcdefghij":
        file["bert"][name] = group


def braid(file: h5py.File) -> None:
    """Thirty groups, each linked twice from the one above: 2^30 paths."""
    group = file
    for _ in range(30):
        inner = group.create_group("a")
        group["b"] = inner
        group = inner
    group["bias:0"] = np.ones(1)


def deep(file: h5py.File) -> None:
    group = file
    for _ in range(3000):
        group = group.create_group("g")


def huge(shape: tuple[int, ...], **options: object) -> Callable[[h5py.File], None]:
    return lambda file: void(file.create_dataset("bert/bert/x/bias:0", shape=shape, dtype="f4", **options))


def invalid_name(file: h5py.File) -> None:
    file.create_group("bert")
    h5py.h5g.create(file["bert"].id, b"\xff\xfe/")
    file.create_dataset("bert/bert/x/bias:0", data=np.ones(1))


def invalid_dataset_name(file: h5py.File) -> None:
    space = h5py.h5s.create_simple((1,))
    h5py.h5d.create(file.create_group("bert").id, b"\xff\xfebias:0", h5py.h5t.NATIVE_FLOAT, space)


several(
    "hdf5",
    hdf5,
    {
        "loop": loop,
        "loop_to_the_root": lambda file: file.__setitem__("x", file["/"]),
        "groups_of_two_parents": two_parents,
        "braid": braid,
        "groups_3000_deep": deep,
        "invalid_name_of_a_group": invalid_name,
        "invalid_name_of_a_variable": invalid_dataset_name,
        "empty_dataset": lambda file: file.create_dataset("bert/bert/x/bias:0", data=h5py.Empty("f4")),
        "chunks_never_written": huge((1 << 40,), chunks=(1 << 20,)),
        "huge_contiguous": huge((1 << 30,)),
        "huge_chunk": huge((4,), chunks=(1 << 28,), maxshape=(None,)),
        "bomb_of_gzip": huge((1 << 26,), compression="gzip", chunks=(1 << 26,), fillvalue=0),
        "soft_link": lambda file: file.__setitem__("bert", h5py.SoftLink("/nowhere")),
        "external_link": lambda file: file.__setitem__("bert", h5py.ExternalLink("/etc/passwd", "/")),
        "external_values": lambda file: file.create_dataset(
            "bert/x/bias:0", shape=(8,), dtype="u1", external=[("/etc/passwd", 0, 8)]
        ),
        "text": lambda file: file.create_dataset("bert/bert/x/bias:0", data="text"),
        "compound": lambda file: file.create_dataset("bert/bert/x/bias:0", data=np.zeros(2, "i4,f4")),
        "reference": lambda file: file.create_dataset("bert/bert/x/bias:0", shape=(1,), dtype=h5py.ref_dtype),
        "named_type": lambda file: file.__setitem__("bert", np.dtype("f4")),
        "many_groups": lambda file: [file.create_group(f"g{i}") for i in range(3000)],
    },
)


@case
def hdf5_longer_than_it_says(directory: Path) -> None:
    hdf5(lambda file: file.create_dataset("bert/bert/x/bias:0", data=np.arange(9.0)))(directory)
    path = directory / "tf_model.h5"
    content = path.read_bytes()
    path.write_bytes(content[:-20] + bytes(4) + content[-20:])


def of_random_bytes(name: object) -> Case:
    content = np.random.default_rng(5).bytes(5000)
    return lambda directory: void((directory / str(name)).write_bytes(content))


several(
    "noise",
    of_random_bytes,
    {
        "safetensors": "model.safetensors",
        "pytorch": "pytorch_model.bin",
        "flax": "flax_model.msgpack",
        "tf": "tf_model.h5",
        "index": INDEX,
    },
)


# -- the worker -----------------------------------------------------------------------------------------------------


def out_of_time(*_: object) -> None:
    raise BaseException(f"more than {SECONDS} s")


def attempt(directory: Path) -> dict[str, object]:
    """Open a checkpoint and read all its values."""
    from longspan.checkpoints.files import open_checkpoint

    started = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 12 * SECONDS)
    try:
        with open_checkpoint(directory) as reader:
            for key in reader:
                reader.read_raw(key)
        kind, message = "loaded", ""
    except BaseException as error:
        kind, message = type(error).__name__, str(error)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {"kind": kind, "message": message[:3000], "length": len(message), "seconds": time.process_time() - started}


def main(folder: str) -> None:
    """Open every case under the limits."""

    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    signal.signal(signal.SIGALRM, out_of_time)
    signal.signal(signal.SIGPROF, out_of_time)
    for directory in sorted(Path(folder).iterdir()):
        print(json.dumps({"name": directory.name, **attempt(directory)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
