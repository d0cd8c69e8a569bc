"""Write the measured tables of README and guides from benchmarks/results: python scripts/docs_tables.py.

A table stands between `<!-- measured: NAME -->` and `<!-- end -->`; a test holds each to what this script would write.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.table import shortfall

#: file of benchmarks/results -> the kind of processor, in English and Chinese
FILES = {
    "cpu-avx2": ("AVX2", "AVX2"),
    "cpu-avx512-bf16": ("AVX-512, bfloat16", "AVX-512，bfloat16"),
    "cpu-avx512-bf16-fresh": ("the same, glibc's defaults", "同左，glibc 默认设置"),
}
#: case -> what it is, in English and Chinese
CASES = {
    "bert/ragged/float32": ("BERT-base, lengths 512…32", "BERT-base，长度 512…32"),
    "bert/ragged/bfloat16": ("the same, bfloat16", "同上，bfloat16"),
    "bert/full/float32": ("BERT-base, 4 × 512, no padding", "BERT-base，4 × 512，无填充"),
    "bert/full/bfloat16": ("the same, bfloat16", "同上，bfloat16"),
    "bert/load/float32": ("loading BERT-base", "加载 BERT-base"),
    "longformer/4096/float32": ("Longformer-base, 4,096", "Longformer-base，4,096"),
    "longformer/4096/bfloat16": ("the same, bfloat16", "同上，bfloat16"),
    "longt5/local/4096/float32": ("LongT5-base encoder, 4,096", "LongT5-base 编码器，4,096"),
    "longt5/flax/local/4096/float32": ("the same in Flax", "同上，Flax"),
    "diffllama/forward/float32": ("DiffLlama, 2,048", "DiffLlama，2,048"),
    "mega/4096/float32": ("MEGA, 4,096", "MEGA，4,096"),
    "embed/minilm/sentence-transformers/float32": ("200 texts to vectors", "200 篇文本转为向量"),
    "embed/minilm/openvino/float32": ("200 texts to vectors, OpenVINO", "200 篇文本转为向量，OpenVINO"),
    "embed/minilm/int8": ("the same in int8 beside float32", "同上，int8 对比 float32"),
    "pipeline/classify/float32": ("200 texts, cut at 512 tokens, classified", "200 篇文本，截到 512 个词元，分类"),
    "newest/windows/4096/float32": ("9 windows of BERT beside Longformer", "BERT 的 9 个窗口对比 Longformer"),
    "newest/modernbert/4096/float32": ("ModernBERT beside Longformer, 4,096", "ModernBERT 对比 Longformer，4,096"),
}  # fmt: skip
README = ("bert/ragged/float32", "bert/full/float32", "longformer/4096/float32", "longt5/local/4096/float32",
          "diffllama/forward/float32", "mega/4096/float32", "newest/windows/4096/float32",
          "newest/modernbert/4096/float32")  # fmt: skip
HALF = ("bert/ragged/float32", "bert/ragged/bfloat16", "longformer/4096/float32", "longformer/4096/bfloat16")
TABLES = {"short": README, "half": HALF, "long": tuple(CASES)}
PAGES = ("README.md", "README.zh.md", "docs/guides/06-choosing.md", "docs/guides/06-choosing.zh.md",
         "docs/guides/08-half-precision.md", "docs/guides/08-half-precision.zh.md",
         "docs/guides/09-serving.md", "docs/guides/09-serving.zh.md")  # fmt: skip
#: what `benchmarks.busy` measured: settings and works, in English and Chinese
WAITING = {
    "spin/alone": ("spinning, alone", "自旋，单独"),
    "sleep/alone": ("sleeping, alone", "睡眠，单独"),
    "spin/busy": ("spinning, beside it", "自旋，同时"),
    "sleep/busy": ("sleeping, beside it", "睡眠，同时"),
}
WAITING_WORKS = {
    "query": ("one short query to a vector, MiniLM", "一个短查询转为向量，MiniLM"),
    "texts": ("200 texts to vectors, MiniLM", "200 篇文本转为向量，MiniLM"),
    "longformer": ("Longformer-base, 2 layers, 4,096 tokens", "Longformer-base，2 层，4,096 个词元"),
}
MARKED = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", flags=re.S)


def cell(found: dict[str, Any] | None, with_seconds: bool) -> str:
    """The peer's time ÷ ours, bold where we are slower, with a star where a target was missed."""
    if found is None:
        return "–"
    ratio = found["ratio"]
    text = f"**{ratio:.2f}**" if ratio < 1 else f"{ratio:.2f}"
    text += "\\*" * (shortfall(found) > 1)
    return text + f" ({found['peer_seconds']:.2f} s → {found['ours_seconds']:.2f} s)" * with_seconds


def waiting_table(is_chinese: bool) -> str:
    """Seconds of `benchmarks.busy`: threads that spin and threads that sleep, alone and beside another program."""
    found = json.loads((ROOT / "benchmarks/results/busy.json").read_text(encoding="utf-8"))["seconds"]
    lines = ["| " + " | ".join(["", *(head[is_chinese] for head in WAITING.values())]) + " |", "|---" * 5 + "|"]
    for work, about in WAITING_WORKS.items():
        cells = [f"{found[setting][work]:.{3 if work == 'query' else 2}f} s" for setting in WAITING]
        lines.append("| " + " | ".join([about[is_chinese], *cells]) + " |")
    return "\n".join(lines) + "\n"


def table(name: str, language: str) -> str:
    """A table in Markdown; what no file has a figure of is left out."""
    is_chinese = language == "zh"
    if name == "waiting":
        return waiting_table(is_chinese)
    results = [
        json.loads((ROOT / f"benchmarks/results/{file}.json").read_text(encoding="utf-8"))["cases"] for file in FILES
    ]
    heads = ["用例" if is_chinese else "case", *(kind[is_chinese] for kind in FILES.values())]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for case in TABLES[name]:
        if not any(case in one for one in results):
            continue
        cells = [cell(one.get(case), name != "short") for one in results]
        lines.append("| " + " | ".join([CASES[case][is_chinese], *cells]) + " |")
    return "\n".join(lines) + "\n"


def filled(page: Path) -> str:
    """A page with its tables as they should be."""
    language = "zh" if page.stem.endswith(".zh") else "en"
    return MARKED.sub(
        lambda found: found.group(1) + table(found.group(2), language) + found.group(3),
        page.read_text(encoding="utf-8"),
    )


def main() -> int:
    """Write all pages."""
    for name in PAGES:
        (ROOT / name).write_text(filled(ROOT / name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
