"""What figures are measured on: processor, caches, the instructions that the libraries really use, and the allocator.

Figures of different instruction sets or allocators are not compared: each has files of its own. `Setting` says what a
run asks for, `machine` what it got.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

from longspan.machine import (
    KEPT,
    SETTINGS,
    allocator,
    caches,
    installed,
    label,
    memory_gib,
    num_cores,
    probe,
    processor,
)

PACKAGES = (
    "torch", "transformers", "sentence-transformers", "onnxruntime", "openvino", "ctranslate2", "jax", "flax",
    "tensorflow", "keras", "numpy",
)  # fmt: skip
#: how to ask PyTorch's own kernels, oneDNN, MKL, XLA and OpenBLAS for fewer instructions than the processor has
INSTRUCTIONS = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX512",
        "OPENBLAS_CORETYPE": "SkylakeX",
    },
}
#: what must agree for figures to stand in one file, or to be compared
COMPARED = ("cpu", "cores", "instructions", "allocator")


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
        "cpu": processor(),
        "cores": num_cores(),
        "memory_gib": memory_gib(),
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
    names = ("aten", "onednn", "mkl", "openblas")
    said = ", ".join(f"{name}: {libraries[name]}" for name in names if name in libraries)
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


def _versions() -> dict[str, str]:
    versions = {package: installed(package) for package in PACKAGES}
    return {package: number for package, number in versions.items() if number is not None}
