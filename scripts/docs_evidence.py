"""Write the tables and plots of docs/evidence.md from benchmarks/results: python scripts/docs_evidence.py.

A table stands between `<!-- evidence: NAME -->` and `<!-- end -->`; a test holds each to what this script would write,
and each plot, which matplotlib (extra `docs`) draws, to the results that it shows.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
PAGES = {"en": ROOT / "docs/evidence.md", "zh": ROOT / "docs/evidence.zh.md"}
PLOTS = ROOT / "docs/evidence"
MARKED = re.compile(r"(<!-- evidence: (\w+) -->\n).*?(<!-- end -->)", flags=re.S)
#: words of the tables: English -> Chinese
CHINESE = {
    "words counted (tf-idf)": "词计数（tf-idf）", "MiniLM, frozen": "MiniLM，冻结",
    "small BERT, fine-tuned": "小 BERT，微调", "what is read": "读入部分", "model": "模型", "accuracy, %": "准确率，%",
    "gain, points": "增益，百分点",
    "first 254 tokens": "前 254 个词元",
    "first 254 tokens, three times the epochs": "前 254 个词元，三倍的遍数",
    "first 510 tokens": "前 510 个词元", "all": "全部",
    "all windows": "全部窗口", "all (`to_long`)": "全部（`to_long`）", "1 window": "1 个窗口", "2 windows": "2 个窗口",
    "3 windows": "3 个窗口", "4 windows": "4 个窗口",
    "parameters": "参数", "seconds a step": "每步秒数", "speed": "速度", "speed in the paper": "论文中的速度",
    "memory": "内存", "memory in the paper": "论文中的内存", "Transformer": "Transformer",
    "Transformer, fused attention": "Transformer，融合注意力", "MEGA, chunks of 128": "MEGA，每块 128",
    "bits per byte": "每字节比特", "needles": "针数", "difference": "差", "tokens": "词元数",
    "ROUGE-L, %": "ROUGE-L，%",
    "title within what is read": "标题在读入部分之内的比例", "ROUGE-L, title read": "ROUGE-L，标题已读入",
    "ROUGE-L, title not read": "ROUGE-L，标题未读入", "constant answer": "固定答案",
    "run": "运行", "clock": "时钟", "processor": "处理器", "threads": "线程",
}  # fmt: skip
REVIEW_ARMS = {
    "254": "first 254 tokens", "510": "first 510 tokens", "all": "all", "to_long": "all (`to_long`)",
    "truncated": "first 254 tokens", "truncated_longer": "first 254 tokens, three times the epochs",
    "windows": "all windows", "all windows": "all windows",
}  # fmt: skip
MEGA_NAMES = {
    "transformer": "Transformer", "transformer_fused": "Transformer, fused attention", "mega": "MEGA",
    "mega_chunked": "MEGA, chunks of 128",
}  # fmt: skip


def load(name: str) -> dict[str, Any]:
    """A file of results."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def said(text: str, language: str) -> str:
    """A word of the tables in a language."""
    return CHINESE.get(text, text) if language == "zh" else text


def lines(heads: list[str], rows: list[list[str]], language: str) -> str:
    """A table in Markdown."""
    shown = [[said(head, language) for head in heads], ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(row) + " |\n" for row in shown)


def percent(found: dict[str, Any] | None, sign: str = "") -> str:
    """A share of one, or a difference of such, with its interval, in percent."""
    if found is None:
        return "–"
    low, high = found["interval"]
    return f"{100 * found['mean']:{sign}.1f} ({100 * low:{sign}.1f} … {100 * high:{sign}.1f})"


def times(parts: dict[str, dict[str, Any]], language: str) -> str:
    """What was run and how long it took."""
    rows = [
        [
            f"`{part['command']}`",
            f"{part['seconds']:,.0f} s",
            f"{part['processor_seconds']:,.0f} s",
            f"{part['threads']}",
        ]
        for part in parts.values()
    ]
    return "\n" + lines(["run", "clock", "processor", "threads"], rows, language)


def of_reviews(language: str) -> str:
    """Accuracies on film reviews."""
    results = load("long_reviews")
    rows = []
    for part, model in (
        ("words", "words counted (tf-idf)"),
        ("frozen", "MiniLM, frozen"),
        ("tuned", "small BERT, fine-tuned"),
    ):
        tokens = results.get(part, {}).get("tokens", {})
        for arm, found in results.get(part, {}).get("arms", {}).items():
            name = said(REVIEW_ARMS.get(arm, arm), language)
            read = f"{name}, {tokens[arm]}" if arm in tokens else name
            rows.append([said(model, language), read, percent(found["accuracy"]), percent(found.get("gain"), "+")])
    return lines(["model", "what is read", "accuracy, %", "gain, points"], rows, language)


def of_review_times(language: str) -> str:
    """What the parts took."""
    results = load("long_reviews")
    return times({name: part for name, part in results.items() if name != "tuned"}, language)


def of_mega(language: str) -> str:
    """Time and memory of a step."""
    step = load("mega_speed")["step"]
    rows = []
    for name, title in MEGA_NAMES.items():
        found, paper = step[name], step[name]["paper"] or {}
        seconds = sorted(found["processor_seconds"])[len(found["processor_seconds"]) // 2]
        rows.append([
            said(title, language), f"{found['parameters']:,}", f"{seconds:.2f}",
            f"{found['speed']:.2f} ({found['speed_range'][0]:.2f} … {found['speed_range'][1]:.2f})",
            str(paper.get("speed", "–")), f"{found['memory']:.2f} ({found['memory_mib']:,.0f} MiB)",
            str(paper.get("memory", "–")),
        ])  # fmt: skip
    heads = ["model", "parameters", "seconds a step", "speed", "speed in the paper", "memory", "memory in the paper"]
    return lines(heads, rows, language) + times({"step": step}, language)


def of_needles(language: str) -> str:
    """Bits per byte and needles found."""
    results = load("diff_needles")
    families = {"diffllama": "DiffLlama", "llama": "Llama"}
    bits = [results[family]["bits_per_byte"] for family in families]
    apart = results["difference"]
    numbers = [f"{one['mean']:.3f} ({one['interval'][0]:.3f} … {one['interval'][1]:.3f})" for one in bits]
    gap = "{:+.3f} ({:+.3f} … {:+.3f})".format(apart["bits_per_byte"]["mean"], *apart["bits_per_byte"]["interval"])
    rows = [[said("parameters", language), *(f"{results[one]['parameters']:,}" for one in families), "–"],
            [said("bits per byte", language), *numbers, gap]]  # fmt: skip
    for count in results["llama"]["needles"]:
        shares = [percent(results[family]["needles"][count]) for family in families]
        rows.append([f"{said('needles', language)}: {count} (%)", *shares, percent(apart["needles"][count], "+")])
    return lines(["", *families.values(), "difference"], rows, language) + times(
        {family: results[family] for family in families}, language
    )


def of_titles(language: str) -> str:
    """ROUGE-L by tokens read."""
    part = load("titles_longt5")["titles"]
    rows = [
        [length, percent(found["rouge_l"]), f"{100 * found['title_read']:.0f} %",
         percent(found["rouge_l_read"]), percent(found["rouge_l_unread"])]
        for length, found in part["lengths"].items() if length != "constant"
    ]  # fmt: skip
    rows.append([said("constant answer", language), percent(part["lengths"]["constant"]), "–", "–", "–"])
    heads = ["tokens", "ROUGE-L, %", "title within what is read", "ROUGE-L, title read", "ROUGE-L, title not read"]
    return lines(heads, rows, language) + times({"titles": part}, language)


TABLES: dict[str, Callable[[str], str]] = {
    "reviews": of_reviews, "review_times": of_review_times, "mega": of_mega, "needles": of_needles, "titles": of_titles,
}  # fmt: skip
#: plot -> file of results
DRAWN = {"reviews": "long_reviews", "mega": "mega_speed", "needles": "diff_needles", "titles": "titles_longt5"}


def drawn() -> list[str]:
    """Plots whose results there are."""
    return [name for name, file in DRAWN.items() if (RESULTS / f"{file}.json").exists()]


def filled(language: str) -> str:
    """A page with its tables as they should be."""
    return MARKED.sub(
        lambda found: found.group(1) + TABLES[found.group(2)](language) + found.group(3),
        PAGES[language].read_text(encoding="utf-8"),
    )


def digest(name: str) -> str:
    """What a plot says it was drawn from: a digest of the results without their times."""
    kept = {part: {key: value for key, value in values.items() if "seconds" not in key and key != "command"}
            for part, values in load(DRAWN[name]).items()}  # fmt: skip
    return hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=8).hexdigest()


# Plots: transparent, with grey text that can be read on white and on black


def errors_of(found: list[dict[str, Any]], scale: float = 100) -> tuple[list[float], list[list[float]]]:
    """Means and the lengths of the bars below and above them."""
    means = [scale * one["mean"] for one in found]
    below = [scale * (one["mean"] - one["interval"][0]) for one in found]
    above = [scale * (one["interval"][1] - one["mean"]) for one in found]
    return means, [below, above]


def draw_reviews(axes: Any) -> None:
    """Accuracies with intervals."""
    results = load("long_reviews")
    labels, found, colours = [], [], []
    for part, title, colour in (("words", "tf-idf", "C0"), ("frozen", "frozen", "C1"), ("tuned", "fine-tuned", "C2")):
        for arm, values in results.get(part, {}).get("arms", {}).items():
            labels.append(f"{title}: {REVIEW_ARMS.get(arm, arm).replace('`', '')}")
            found.append(values["accuracy"])
            colours.append(colour)
    means, bars = errors_of(found)
    for place, (mean, below, above, colour) in enumerate(zip(means, *bars, colours, strict=True)):
        axes.errorbar(mean, -place, xerr=[[below], [above]], fmt="o", color=colour, capsize=3)
    axes.set_yticks([-place for place in range(len(labels))], labels)
    axes.set_xlabel("accuracy, %")


def draw_mega(axes: Any) -> None:
    """Speed and memory relative to the Transformer."""
    step = load("mega_speed")["step"]
    for place, (name, title) in enumerate(MEGA_NAMES.items()):
        axes.scatter(step[name]["memory"], step[name]["speed"], color=f"C{place}", label=title, s=60)
        if step[name]["paper"]:
            paper = step[name]["paper"]
            axes.scatter(paper["memory"], paper["speed"], color=f"C{place}", marker="x", label=f"{title}, paper")
    axes.set(xlabel="memory, Transformer = 1", ylabel="speed, Transformer = 1", xlim=(0, None), ylim=(0, None))
    axes.legend()


def draw_needles(axes: Any) -> None:
    """Needles found by their number."""
    results = load("diff_needles")
    for family, title in (("diffllama", "DiffLlama"), ("llama", "Llama")):
        counts = [int(count) for count in results[family]["needles"]]
        means, bars = errors_of(list(results[family]["needles"].values()))
        axes.errorbar(counts, means, yerr=bars, marker="o", capsize=3, label=title)
    axes.axhline(10, linestyle=":", color="#808080", label="chance among digits")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set(xlabel="needles in a window of 96 bytes", ylabel="found, %", ylim=(0, None))
    axes.legend()


def draw_titles(axes: Any) -> None:
    """ROUGE-L by tokens read."""
    lengths = load("titles_longt5")["titles"]["lengths"]
    names = [name for name in lengths if name != "constant"]
    sizes = [int(name) for name in names]
    means, bars = errors_of([lengths[name]["rouge_l"] for name in names])
    axes.errorbar(sizes, means, yerr=bars, marker="o", capsize=3, label="LongT5")
    axes.axhline(100 * lengths["constant"]["mean"], linestyle=":", color="#808080", label="constant answer")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, names)
    axes.set(xlabel="tokens read", ylabel="ROUGE-L, %", ylim=(0, None))
    axes.legend()


DRAW: dict[str, Callable[[Any], None]] = {
    "reviews": draw_reviews, "mega": draw_mega, "needles": draw_needles, "titles": draw_titles,
}  # fmt: skip


def plot(name: str) -> None:
    """Draw a plot into docs/evidence."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    grey = "#808080"
    settings = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), grey)
    with pyplot.rc_context({**settings, "svg.hashsalt": name, "legend.framealpha": 0.0, "font.size": 10}):
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        DRAW[name](axes)
        PLOTS.mkdir(exist_ok=True)
        about = {"Date": None, "Creator": None, "Description": f"results {digest(name)}"}
        figure.savefig(PLOTS / f"{name}.svg", transparent=True, metadata=about)
        pyplot.close(figure)


def main() -> int:
    """Write pages and plots for the results that exist."""
    for language, page in PAGES.items():
        page.write_text(filled(language), encoding="utf-8")
    for name in drawn():
        plot(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
