"""Training to write: masked words, the next word, summaries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from longspan.documents.document import replace_surrogates
from longspan.documents.tokens import tokenize
from longspan.documents.windows import owned_ranges, plan_windows
from longspan.errors import InputError
from longspan.inputs import IGNORE_INDEX
from longspan.pipelines.backends import longest_input
from longspan.pipelines.long.rows import Row, RowTemplate
from longspan.pipelines.pipeline import pipeline
from longspan.pipelines.run.batching import pad, round_length
from longspan.training import metrics
from longspan.training.records import Record
from longspan.training.task import Array, Example, Sample, TensorBatch, TrainingTask, text_of

#: Of the tokens to fill so many become the mask token, and so many any token; the rest stay.
_MASKED, _REPLACED = 0.8, 0.1
_NO_LIMIT = 1 << 30
_LONGEST_IF_UNLIMITED = 2048


class LanguageTask(TrainingTask):
    """What tasks share that learn texts or write them: windows by the tokenizer, a loss on what was held back."""

    metric: ClassVar[str] = "loss"
    metric_names: tuple[str, ...] = ("loss", "perplexity")

    def open(self, model: Any, tokenizer: Any) -> None:
        """Take the model in training."""
        self.model, self.tokenizer = model, tokenizer
        self._fast = tokenizer.backend_tokenizer
        self._template = RowTemplate(self._fast)
        limit = longest_input(model.config) or _NO_LIMIT  # of the tokenizer the number is advice
        usual = min(limit, int(tokenizer.model_max_length))
        length = self.options.max_length or (usual if usual < _NO_LIMIT else _LONGEST_IF_UNLIMITED)
        if not 2 <= length <= limit:
            raise InputError(f"max_length must lie in [2, {limit}]. Received: max_length={length}")
        self.length = length
        pads = (tokenizer.pad_token_id, getattr(model.config, "pad_token_id", None), 0)
        self._pad = next(pad for pad in pads if pad is not None)

    def place(self, device: Any) -> None:
        """Nothing to tell: what writes asks the model."""

    def example(self, record: Record) -> Example:
        """A text."""
        return Example(replace_surrogates(text_of(record, self.text_column)), None, record)

    def stack(self, rows: list[Row], length: int | None = None) -> dict[str, Array]:
        """Ids, padded on the right, and their mask."""
        shape = (len(rows), length or max(map(len, rows)))
        lengths = np.array([len(row) for row in rows])
        return {"input_ids": pad([row.ids for row in rows], shape, self._pad),
                "attention_mask": np.arange(shape[1]) < lengths[:, None]}  # fmt: skip

    def windows(self, num_tokens: int, num_special: int) -> list[tuple[int, int]]:
        """Windows over a text; raises `InputError` if it has no tokens or is too long for `on_long="error"`."""
        capacity = self.length - num_special
        if not num_tokens:
            raise InputError("A text must have at least one token. Received: a text without any")
        if num_tokens > capacity and self.options.on_long == "error":
            raise InputError(f"A text must fit {self.length} tokens with on_long='error'. "
                             f"Received: {num_tokens + num_special}")  # fmt: skip
        if self.options.on_long == "truncate":
            return [(0, min(num_tokens, capacity))]
        return plan_windows(num_tokens, capacity, self.options.stride or 0)

    def samples(self, examples: Sequence[Example]) -> list[list[Sample] | InputError]:
        """The windows of texts."""
        found: list[list[Sample] | InputError] = []
        tokens = tokenize(self._fast, [example.item for example in examples], with_offsets=False)
        for example, of_text in zip(examples, tokens, strict=True):
            try:
                found.append(self.windows_with_targets(example, of_text.ids))
            except InputError as error:
                found.append(error)
        return found

    def windows_with_targets(self, example: Example, ids: Any) -> list[Sample]:
        """Samples of one text, from its token ids."""
        raise NotImplementedError

    def evaluate(self, examples: Sequence[Example]) -> dict[str, float]:
        """Mean loss of a token, and its power of e."""
        samples = [sample for found in self.samples(examples) if not isinstance(found, InputError) for sample in found]
        epoch, self.epoch = self.epoch, -1
        loss = self.backend.summed_loss(self, samples) / sum(sample.weight for sample in samples)
        self.epoch = epoch
        return {"loss": loss, "perplexity": math.exp(min(loss, 700))}


class FillTask(LanguageTask):
    """Masked tokens. Each epoch masks others; each token may be masked in one window alone."""

    has_token_targets: ClassVar[bool] = True
    name: ClassVar[str] = "fill"
    pipeline_task: ClassVar[str] = "fill-mask"
    model_task: ClassVar[str] = "fill-mask"

    def windows_with_targets(self, example: Example, ids: Any) -> list[Sample]:
        """One sample a window: its ids, and which of them may be masked."""
        if self.tokenizer.mask_token_id is None:
            raise InputError("fill needs a tokenizer with a mask token. Received: one without")
        windows = self.windows(len(ids), self._template.num_special)
        samples = []
        for number, ((start, stop), (first, last)) in enumerate(zip(windows, owned_ranges(windows), strict=True)):
            row, (lead,) = self._template.wrap(ids[start:stop])
            places = np.arange(first, last) - start + lead
            count = max(1, round(self.options.mask_rate * len(places)))
            key = np.array([example.record.line or 0, number, len(ids), int(ids.sum())], np.int64)
            samples.append(Sample([row], {"places": places, "key": key, "count": np.int64(count)}, float(count)))
        return samples

    def arrays(self, samples: Sequence[Sample], shape: tuple[int, int] | None = None) -> TensorBatch:
        """Samples with masks drawn for the epoch."""
        return super().arrays([self._mask(sample) for sample in samples], shape)

    def _mask(self, sample: Sample) -> Sample:
        draw = np.random.default_rng([self.options.seed, self.epoch + 1, *np.abs(sample.targets["key"])])
        places = draw.choice(sample.targets["places"], int(sample.targets["count"]), replace=False)
        row, chance = sample.rows[0], draw.random(len(places))
        labels = np.full(len(row), IGNORE_INDEX, np.int64)
        labels[places] = row.ids[places]
        ids = row.ids.copy()
        ids[places[chance < _MASKED]] = self.tokenizer.mask_token_id
        other = places[(chance >= _MASKED) & (chance < _MASKED + _REPLACED)]
        ids[other] = draw.integers(len(self.tokenizer), size=len(other))
        return Sample([Row(ids, row.segments)], {"labels": labels}, sample.weight)

    def loss(self, outputs: Any, batch: TensorBatch) -> Any:
        """Cross-entropy of the masked tokens."""
        return self.backend.total(self.backend.cross_entropy(outputs.logits, batch.targets["labels"]))


class GenerateTask(LanguageTask):
    """The next token. A text ends with the end token; windows do not overlap unless `stride` says so."""

    has_token_targets: ClassVar[bool] = True
    name: ClassVar[str] = "generate"
    pipeline_task: ClassVar[str] = "text-generation"
    model_task: ClassVar[str] = "text-generation"

    def windows_with_targets(self, example: Example, ids: Any) -> list[Sample]:
        """One sample a window; what it shares with the one before is read and not learnt again."""
        whole = self._template.wrap(ids)[0].ids
        end = self.tokenizer.eos_token_id
        if end is not None and whole[-1] != end:
            whole = np.append(whole, np.int32(end))
        samples, known = [], 1  # nothing comes before the first token
        for start, stop in self.windows(len(whole), 0):
            labels = whole[start:stop].astype(np.int64)
            labels[: max(1, known - start)] = IGNORE_INDEX
            known = stop
            weight = float((labels != IGNORE_INDEX).sum())
            if weight:
                row = Row(whole[start:stop], np.zeros(stop - start, np.int32))
                samples.append(Sample([row], {"labels": labels}, weight))
        return samples

    def run(self, model: Any, batch: TensorBatch) -> Any:
        """Scores of the next tokens."""
        return model(**batch.inputs, use_cache=False)

    def loss(self, outputs: Any, batch: TensorBatch) -> Any:
        """Cross-entropy of the score at each token with the next one."""
        terms = self.backend.cross_entropy(outputs.logits[:, :-1], batch.targets["labels"][:, 1:])
        return self.backend.total(terms)


class SummarizeTask(LanguageTask):
    """Summaries. A record has `text` and `summary`; of a text longer than `max_length` the beginning is read."""

    name: ClassVar[str] = "summarize"
    pipeline_task: ClassVar[str] = "summarization"
    model_task: ClassVar[str] = "text2text-generation"
    label_field: ClassVar[str] = "summary"
    metric: ClassVar[str] = "rougeL"
    metric_names = ("rouge1", "rouge2", "rougeL")

    def example(self, record: Record) -> Example:
        """A text and its summary."""
        text, summary = (replace_surrogates(text_of(record, name)) for name in (self.text_column, self.label_column))
        return Example(text, summary, record)

    def open(self, model: Any, tokenizer: Any) -> None:
        """Take the model in training, and a pipeline that writes with it."""
        super().open(model, tokenizer)
        self.pipe = pipeline(self.pipeline_task, model, tokenizer)

    @property
    def runner(self) -> Any:
        """What writes."""
        return self.pipe._writer

    def windows(self, num_tokens: int, num_special: int) -> list[tuple[int, int]]:
        """The beginning."""
        super().windows(num_tokens, num_special)  # its rules hold
        return [(0, min(num_tokens, self.length - num_special))]

    def windows_with_targets(self, example: Example, ids: Any) -> list[Sample]:
        """One sample: the text and the tokens of its summary."""
        special = self._template.num_special
        ((start, stop),) = self.windows(len(ids), special)
        row, _ = self._template.wrap(ids[start:stop])
        [target] = tokenize(self._fast, [example.target], with_offsets=False)
        labels = self._template.wrap(target.ids[: self.options.max_target_length - special])[0].ids.astype(np.int64)
        return [Sample([row], {"labels": labels}, float(len(labels)))]

    def arrays(self, samples: Sequence[Sample], shape: tuple[int, int] | None = None) -> TensorBatch:
        """Samples with what the decoder reads: the summary one token later."""
        batch = super().arrays(samples, shape)
        labels = batch.targets["labels"]
        if shape is not None:
            missing = round_length(labels.shape[1], None) - labels.shape[1]
            labels = np.pad(labels, ((0, 0), (0, missing)), constant_values=IGNORE_INDEX)
        start = self.model.config.decoder_start_token_id
        decoder = np.roll(labels, 1, axis=1)
        decoder[:, 0] = self._pad if start is None else start
        decoder[decoder == IGNORE_INDEX] = self._pad
        return TensorBatch({**batch.inputs, "decoder_input_ids": decoder}, {"labels": labels}, batch.weights)

    def run(self, model: Any, batch: TensorBatch) -> Any:
        """Scores of the summary's tokens."""
        return model(**batch.inputs, use_cache=False)

    def loss(self, outputs: Any, batch: TensorBatch) -> Any:
        """Cross-entropy of each token of the summaries."""
        return self.backend.total(self.backend.cross_entropy(outputs.logits, batch.targets["labels"]))

    def evaluate(self, examples: Sequence[Example]) -> dict[str, float]:
        """ROUGE of summaries of whole documents."""
        texts = [example.item for example in examples]
        found = [result["summary_text"] for result in self.pipe(texts, max_new_tokens=self.options.max_target_length)]
        return metrics.rouge(found, [example.target for example in examples])
