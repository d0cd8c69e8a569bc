"""What figures are measured on: processor, caches, the instructions that the libraries really use, and the allocator.

Figures of different instruction sets or allocators are not compared: each has files of its own. `Setting` says what a
run asks for, `machine` what it got.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "sentence-transformers", "jax", "flax", "tensorflow", "keras", "numpy")
#: variables of the environment that change speed
SETTINGS = (
    "ATEN_CPU_CAPABILITY", "GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_",
    "MKL_ENABLE_INSTRUCTIONS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "THP_MEM_ALLOC_ENABLE",
    "XLA_FLAGS",
)  # fmt: skip
#: how to ask PyTorch's own kernels, oneDNN, MKL and XLA for fewer instructions than the processor has
INSTRUCTIONS = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX512",
    },
}
#: glibc keeps up to 4 GiB of freed memory and takes nothing below 1 GiB from the system by itself
KEPT = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
#: what must agree for figures to stand in one file, or to be compared
COMPARED = ("cpu", "cores", "instructions", "allocator")

PROBE = """
import json, torch
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


class MachineError(RuntimeError):
    """A run got other instructions than it asked for, or figures of different machines are to be mixed."""


@dataclass(frozen=True)
class Setting:
    """What a run asks for.

    Attributes:
        isa: A name in `INSTRUCTIONS`, or None for all that the processor has.
        keeps_memory: Let the C library keep what is freed, for the peer and for longspan alike.
    """

    isa: str | None = None
    keeps_memory: bool = True

    def environment(self) -> dict[str, str]:
        """Variables for the processes that measure; what the caller has set by itself comes first."""
        asked = {**INSTRUCTIONS.get(self.isa or "", {}), **(KEPT if self.keeps_memory else {})}
        return {**asked, **os.environ}

    def file(self, found: dict[str, Any]) -> str:
        """Name of the result file, e.g. `cpu-avx512-bf16`, or `cpu-avx2-fresh` where freed memory is not kept."""
        return f"cpu-{found['instructions']}" + ("" if found["allocator"] != "glibc" else "-fresh")


def machine(setting: Setting) -> dict[str, Any]:
    """What a process of this setting runs on.

    Raises:
        MachineError: the libraries use other instructions than `setting.isa`.
    """
    environment = setting.environment()
    libraries = probe(environment)
    found = {
        "cpu": _cpuinfo("model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "caches": caches(),
        "instructions": label(libraries),
        "libraries": libraries,
        "allocator": allocator(environment),
        "python": platform.python_version(),
        "packages": _versions(),
        "settings": {name: environment[name] for name in SETTINGS if name in environment},
    }
    if setting.isa is not None and found["instructions"] != setting.isa:
        raise MachineError(f"asked for {setting.isa}, but the libraries use {found['instructions']}: {libraries}")
    return found


def probe(environment: dict[str, str]) -> dict[str, Any]:
    """What PyTorch, oneDNN and MKL say that they use, in a process with that environment.

    Returns:
        `aten`, PyTorch's capability; `onednn`, oneDNN's instruction set; `mkl`, the line in which MKL names its
        target; `bf16` and `fp16`, whether oneDNN multiplies in them.
    """
    import json

    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"},
    )
    lines = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    for line in lines:
        if "info,cpu,isa:" in line:
            found["onednn"] = line.rsplit("isa:", 1)[1]
        elif line.startswith("MKL_VERBOSE") and " for " in line:
            found["mkl"] = line.split(" for ", 1)[1].split(", Lnx")[0]
    return found


def label(libraries: dict[str, Any]) -> str:
    """Short name of an instruction set: `avx2`, `avx512`, `avx512-bf16`, `avx512-bf16-amx`, …"""
    onednn = libraries.get("onednn", "").lower()
    parts = [libraries["aten"].lower()]
    if libraries["bf16"]:
        parts.append("bf16")
    elif "vnni" in onednn or "dl boost" in onednn:
        parts.append("vnni")
    return "-".join(parts + ["amx"] * ("amx" in onednn))


def allocator(environment: dict[str, str]) -> str:
    """`glibc`, `glibc, memory kept`, or the name of what is preloaded."""
    preloaded = Path(environment.get("LD_PRELOAD", "").split(":")[0]).name
    if "malloc" in preloaded:
        return preloaded
    return "glibc, memory kept" if all(environment.get(name) == value for name, value in KEPT.items()) else "glibc"


def caches() -> dict[str, str]:
    """Sizes of the caches that one core sees, e.g. `{"L1d": "32K", "L2": "512K", "L3": "32768K"}`."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = (index / "type").read_text()[0].lower()
        if kind != "i":
            level = "L" + (index / "level").read_text().strip()
            found[level + ("d" if kind == "d" else "")] = (index / "size").read_text().strip()
    return found


def check_comparable(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Refuse to mix or compare figures of two machines or settings.

    Raises:
        MachineError: processor, cores, instructions or allocator differ.
    """
    differing = [name for name in COMPARED if one.get(name) != other.get(name)]
    if differing:
        details = "; ".join(f"{name}: {one.get(name)} and {other.get(name)}" for name in differing)
        raise MachineError(f"figures of different machines are not comparable ({details})")


def describe(found: dict[str, Any]) -> str:
    """The header of a table."""
    versions = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    sizes = ", ".join(f"{level} {size}" for level, size in found.get("caches", {}).items())
    libraries = found.get("libraries", {})
    said = ", ".join(f"{name}: {libraries[name]}" for name in ("aten", "onednn", "mkl") if name in libraries)
    half = "bfloat16" if libraries.get("bf16") else "no half-precision"
    lines = [
        f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB" + (f", caches {sizes}" if sizes else "")
    ]
    lines.append(f"Instructions: {found['instructions']}" + (f" ({said}; {half} products)" if said else ""))
    lines.append(f"Allocator: {found['allocator']}. Python {found['python']}, {versions}")
    if found.get("settings"):
        lines.append("Set: " + ", ".join(f"`{name}={value}`" for name, value in found["settings"].items()))
    if found.get("note"):
        lines.append(found["note"])
    return "\n".join(f"- {line}." if not line.endswith(".") else f"- {line}" for line in lines)


def _cpuinfo(name: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith(name)), "")


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
