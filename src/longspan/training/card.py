"""The model card: what a trained model is, how it was trained, how good it was."""

from __future__ import annotations

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
    lines = ["---", "library_name: longspan", f"pipeline_tag: {facts['pipeline']}", f"base_model: {facts['model']}"]
    lines += ["---", "", f"# {output}", "", f"`{facts['model']}`, trained with `longspan train {task}`.", ""]
    lines += ["```console", _USES[task].format(output=output), "```", "", "## Training", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "## Evaluation", ""]
    lines += [f"- {name}: {value:.4f}" for name, value in metrics.items()] or ["There was no validation data."]
    lines += ["", "## Settings", "", "| setting | value |", "|---|---|"]
    lines += [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in options.items()]
    return "\n".join(lines) + "\n"
