"""The model card: what a trained model is, how it was trained, how good it was."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

_USES = {
    "classify": "longspan classify documents/ --model {output} --output labels.csv",
    "tag": "longspan tag documents/ --model {output} --output entities.csv",
    "answer": 'longspan answer documents/ --model {output} --question "..."',
    "choose": 'longspan choose documents/ --model {output} --choice "..." --choice "..."',
    "summarize": "longspan summarize documents/ --model {output}",
    "generate": "longspan generate documents/ --model {output}",
    "fill": "longspan fill documents/ --model {output}",
    "embed": "longspan embed documents/ --model {output} --output index.parquet",
}


def model_card(
    task: str, output: str, facts: Mapping[str, Any], metrics: Mapping[str, Any], options: Mapping[str, Any]
) -> str:
    """The text of `README.md`, with the fields that the hub reads at its top.

    Args:
        task: Name of the task.
        output: Name of the folder.
        facts: What the card states of model, data and run, by name.
        metrics: Metrics of the best model; empty if it was not evaluated.
        options: Settings of the run.
    """
    tag, base = (json.dumps(_on_one_line(facts[name])) for name in ("pipeline", "model"))  # JSON's strings are YAML's
    lines = ["---", "library_name: longspan", f"pipeline_tag: {tag}", f"base_model: {base}", "---", ""]
    lines += [f"# {_text(output)}", "", f"{_text(facts['model'])}, trained with `longspan train {task}`.", ""]
    use = _USES[task].format(output=shlex.quote(_on_one_line(output)))
    lines += ["```console", use, "```", "", "## Training", ""]
    lines += [f"- {_text(name)}: {_text(value)}" for name, value in facts.items()]
    lines += ["", "## Evaluation", ""]
    lines += [f"- {_text(name)}: {value:.4f}" for name, value in metrics.items()] or ["There was no validation data."]
    lines += ["", "## Settings", "", "| setting | value |", "|---|---|"]
    lines += [f"| {_text(name)} | {_text(value)} |" for name, value in options.items()]
    return "\n".join(lines) + "\n"


def _on_one_line(value: Any) -> str:
    """A value as text without line breaks and control characters."""
    return "".join(character if character.isprintable() else " " for character in str(value))


def _text(value: Any) -> str:
    """A value as text without markup of Markdown or HTML: names of files, models and labels may be anything."""
    return re.sub(r"[<>&`|\\]|\](?=[(\[:])", lambda found: f"&#{ord(found[0])};", _on_one_line(value))
