"""`finetune`: from data and a model to a folder with a trained model."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longspan.checkpoints.update import DirectoryUpdate
from longspan.configuration import SOURCE_ARGUMENTS, PretrainedConfig
from longspan.documents.document import Problem
from longspan.errors import InputError
from longspan.pipelines.options import check_choice, load_tokenizer
from longspan.pipelines.run.identity import digest_of_json
from longspan.training.options import TrainOptions
from longspan.training.run_folder import FOLDER

if TYPE_CHECKING:
    from longspan.training.memory import Plan
    from longspan.training.spill import Store

#: task -> module here and class
TASKS = {
    "classify": ("classify", "ClassifyTask"),
    "tag": ("tag", "TagTask"),
    "answer": ("answer", "AnswerTask"),
    "choose": ("answer", "ChooseTask"),
    "summarize": ("language", "SummarizeTask"),
    "fill": ("language", "FillTask"),
    "generate": ("language", "GenerateTask"),
    "embed": ("embed", "EmbedTask"),
}
#: framework -> module here and class
_LOOPS = {"torch": ("loop", "Loop"), "flax": ("flax_loop", "FlaxLoop"), "keras": ("keras_loop", "KerasLoop")}
REPORT = "training.json"
#: documents that are cut into windows together
_BLOCK = 1024


@dataclass
class TrainReport:
    """What a run did.

    Attributes:
        output: Folder of the trained model.
        documents: Documents that it learnt from.
        validated: Documents that it was evaluated on.
        steps: Steps of the optimizer.
        tokens: Tokens that were read.
        metrics: Those of the best model, and `step`; empty without validation data.
        problems: What was left out.
        was_complete: An earlier run had done all of it.
    """

    output: Path
    documents: int = 0
    validated: int = 0
    steps: int = 0
    tokens: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    was_complete: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All values by name, as JSON holds them."""
        return {**asdict(self), "output": str(self.output)}

    def __str__(self) -> str:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items() if name != "step")
        counts = f"{self.documents:,} documents, {self.steps:,} steps, {self.tokens:,} tokens"
        left_out = f"\n{len(self.problems):,} left out (named above)" if self.problems else ""
        complete = "an earlier run had completed it; " if self.was_complete else ""
        return f"{self.output}: {complete}{counts}{f'; {metrics}' if metrics else ''}{left_out}"


def finetune(
    task: str,
    model: str | os.PathLike[str],
    data: Any,
    output: str | os.PathLike[str],
    *,
    validation: Any = None,
    show_progress: bool = False,
    **options: Any,
) -> TrainReport:
    """Train a model for a task on documents of any length, and write it to a folder.

    PyTorch trains on accelerate, Flax on optax and orbax, Keras by `fit`; see `framework`. A document longer than the
    model is read in the windows in which it is read later. A step reads `batch_tokens` tokens, whatever documents,
    forward passes and processes these are; its loss is the mean over what counts in them. Under `accelerate launch` the
    processes share each step. The same call goes on after an interruption, to the same weights.

    Args:
        task: `classify`, `tag`, `answer`, `choose`, `summarize`, `fill`, `generate` or `embed`.
        model: Directory or hub repository with a model of any head.
        data: Files or folders (jsonl, csv, Parquet; folders by label; CoNLL columns for `tag`, SQuAD JSON for
            `answer`), or an iterable of mappings such as a `datasets.Dataset`.
        output: Folder to write: the model, its tokenizer, `README.md` (a model card), `training.json`, `log.csv`.
        validation: Data to evaluate on, likewise; default a part of `data` (`validation_split`).
        show_progress: Draw loss, tokens a second and time left on the standard error stream.
        **options: See `longspan.training.options.TrainOptions`.

    Returns:
        What was done.

    Raises:
        InputError: an argument breaks a rule, or nothing in the data can be used.
        CheckpointNotFoundError: there is no such model.
        ConfigError: the model's family has no class for the task.
        MissingFrameworkError: the framework is not installed.

    Example:
        >>> from longspan.training import finetune
        >>> rows = [{"text": "a fine film", "label": "good"}, {"text": "a dull film", "label": "bad"}]
        >>> finetune("classify", "./my-longformer", rows, "./reviews", epochs=2)  # doctest: +SKIP
    """
    prepared = prepare(task, model, data, output, validation=validation, options=TrainOptions.of(options))
    earlier = prepared.earlier()
    if earlier is not None:
        return earlier
    report: TrainReport = make_loop(prepared, show_progress=show_progress).run()
    return report


def plan_run(
    task: str,
    model: str | os.PathLike[str],
    data: Any,
    output: str | os.PathLike[str],
    *,
    validation: Any = None,
    **options: Any,
) -> Plan:
    """What `finetune` would cost with the same arguments: its memory and time, from one measured step."""
    prepared = prepare(task, model, data, output, validation=validation, options=TrainOptions.of(options))
    planned: Plan = make_loop(prepared, show_progress=False).plan()
    return planned


@dataclass
class Prepared:
    """All that the loop needs, before anything was trained.

    Attributes:
        task: The task, with the model opened.
        model_name: Where the model is from.
        output: Folder to write.
        options: Settings of the run.
        samples: Windows to learn from.
        validation: Documents to evaluate on.
        num_documents: Documents to learn from.
        problems: What was left out.
    """

    task: Any
    model_name: str
    output: Path
    options: TrainOptions
    samples: Sequence[Any]
    validation: list[Any]
    num_documents: int
    problems: list[Problem]

    def identity(self) -> dict[str, Any]:
        """What the trained weights depend on."""
        digest = hashlib.blake2b(digest_size=16)
        for sample in self.samples:
            for row in sample.rows:
                digest.update(row.ids.tobytes())
            for name, value in sample.targets.items():
                digest.update(name.encode() + np.asarray(value).tobytes())
        held_back = digest_of_json([[example.item, example.target] for example in self.validation])
        return {"task": self.task.name, "model": self.model_name, "data": digest.hexdigest(),
                "validation": held_back, "options": self.options.identity()}  # fmt: skip

    def earlier(self) -> TrainReport | None:
        """The report of an earlier run that finished the same work.

        Raises:
            InputError: the output holds something else.
        """
        report = self.output / REPORT
        if self.options.overwrite or not self.output.exists() or not any(self.output.iterdir()):
            return None
        if report.exists():
            values = json.loads(report.read_text(encoding="utf-8"))
            if values["identity"] == json.loads(json.dumps(self.identity())):
                shutil.rmtree(self.output / FOLDER, ignore_errors=True)  # a run was killed when it had written all
                counts = {name: values[name] for name in ("documents", "validated", "steps", "tokens", "metrics")}
                return TrainReport(self.output, **counts, problems=self.problems, was_complete=True)
        elif (self.output / FOLDER).exists():
            return None
        raise InputError(f"output must be a new folder, or be given with overwrite. Received: {self.output}")

    def report(self, steps: int, tokens: int, metrics: dict[str, float]) -> TrainReport:
        """What the run did."""
        return TrainReport(self.output, self.num_documents, len(self.validation), steps, tokens, metrics, self.problems)


def make_task(name: str, options: TrainOptions) -> Any:
    """The task of a name; raises `InputError` if there is none."""
    if name not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)}. Received: task={name!r}")
    return _find(TASKS[name])(options)


def loop_class(framework: str) -> Any:
    """The class of the loop of a framework."""
    return _find(_LOOPS[framework])


def make_loop(prepared: Prepared, *, show_progress: bool) -> Any:
    """The loop of the framework."""
    return loop_class(prepared.options.framework)(prepared, show_progress=show_progress)


def _find(place: tuple[str, str]) -> Any:
    module, name = place
    return getattr(importlib.import_module(f"longspan.training.{module}"), name)


def prepare(
    task_name: str,
    model: str | os.PathLike[str],
    data: Any,
    output: str | os.PathLike[str],
    *,
    validation: Any,
    options: TrainOptions,
) -> Prepared:
    """Read the data, load the model, make windows; see `finetune`."""
    from longspan.training.spill import Store

    task = make_task(task_name, options)
    name = os.fspath(model)
    source = task.source(name)
    tokenizer = load_tokenizer(source, None)
    place = {argument: getattr(source, argument) for argument in SOURCE_ARGUMENTS}
    store = Store(Path(output), options.memory)
    training, held_back, problems = _read(task, data, validation, store)
    task.learn_labels(training, PretrainedConfig.get_config_dict(source.name, **place).get("label2id") or {})
    check_choice("metric", task.best_metric, task.metric_names)
    held_back = _checked(task, held_back, problems)
    task.open(task.load(name), tokenizer)
    samples, num_documents = _samples(task, training, problems, store)
    if not samples:
        raise InputError(_nothing(problems))
    task.check_samples(samples)
    validated = _usable(task, held_back, problems)
    return Prepared(task, name, Path(output), options, samples, validated, num_documents, problems)


def _read(task: Any, data: Any, validation: Any, store: Store) -> tuple[Sequence[Any], list[Any], list[Problem]]:
    """Examples to learn from, examples to evaluate on, and what was left out."""
    from longspan.training.records import records_of
    from longspan.training.spill import Chosen

    columns = {"layout": task.layout, "text_field": task.text_column, "label_field": task.label_column}
    taken = task.take(records_of(data, **columns), store.examples())
    if not taken.examples:
        raise InputError(_nothing(taken.problems))
    if validation is not None:
        held_back = task.take(records_of(validation, **columns))
        return taken.examples, held_back.examples, taken.problems + held_back.problems
    order = np.random.default_rng(task.options.seed).permutation(len(taken.examples))
    count = int(len(order) * task.options.validation_split)
    training = Chosen(taken.examples, np.sort(order[count:]))
    return training, [taken.examples[index] for index in np.sort(order[:count])], taken.problems


def _nothing(problems: Sequence[Problem]) -> str:
    first = f"; the first of {len(problems):,} problems: {problems[0]}" if problems else ""
    return f"There must be a record that can be learnt from. Received: none{first}"


def _leave_out(task: Any, example: Any, error: InputError, problems: list[Problem]) -> None:
    problem = example.record.problem(error)
    if task.options.strict:
        raise InputError(f"With strict everything must be usable. Received: {problem}")
    problems.append(problem)


def _checked(task: Any, examples: list[Any], problems: list[Problem]) -> list[Any]:
    """Examples whose targets training has."""
    kept = []
    for example in examples:
        try:
            task.check_target(example)
            kept.append(example)
        except InputError as error:
            _leave_out(task, example, error, problems)
    return kept


def _samples(task: Any, examples: Sequence[Any], problems: list[Problem], store: Store) -> tuple[Sequence[Any], int]:
    samples, count = store.samples(), 0
    for begin in range(0, len(examples), _BLOCK):
        block = examples[begin : begin + _BLOCK]
        for example, found in zip(block, task.samples(block), strict=True):
            if isinstance(found, InputError):
                _leave_out(task, example, found, problems)
            else:
                for sample in found:
                    samples.append(sample)
                count += bool(found)
    return samples, count


def _usable(task: Any, examples: list[Any], problems: list[Problem]) -> list[Any]:
    """Examples that the model can read."""
    kept = []
    for example, found in zip(examples, task.samples(examples) if examples else [], strict=True):
        if isinstance(found, InputError):
            _leave_out(task, example, found, problems)
        else:
            kept.append(example)
    return kept


def write_report(report: TrainReport, identity: dict[str, Any], card: str) -> None:
    """Write `training.json` and the model card."""
    values = {**report.to_dict(), "identity": identity}
    with DirectoryUpdate(report.output) as update:
        update.write("README.md", card.encode())
        update.write(REPORT, json.dumps(values, indent=1).encode())
