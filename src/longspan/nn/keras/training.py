"""What Keras' own methods (`fit`, `evaluate`, `predict`, ...) need to know of a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from longspan.errors import InputError
from longspan.model_output import ModelOutput
from longspan.nn.keras.buckets import LengthBuckets
from longspan.nn.keras.inputs import plain
from longspan.nn.keras.losses import IGNORE_INDEX
from longspan.nn.keras.outputs import TFModelOutput
from longspan.ops.keras import Tensor

#: labels of each token that come as `y` with the batch that a step of Keras runs; True if all may count
_coming: ContextVar[Any] = ContextVar("longspan_keras_coming_labels", default=None)
#: weights by label are one array that Keras has repeated
_repeats_weights: ContextVar[bool] = ContextVar("longspan_keras_repeats_weights", default=False)


class TaskTraining(LengthBuckets):
    """Mix-in of Keras models: training with a standard Keras loss, or with the model's own.

    - `compile(loss=...)`, labels as `y`: the loss meets the scores that belong to the labels. `y` is one tensor, a
      tuple, or a dict by label name; with several labels (`start_positions`, `end_positions`) so is the loss.
    - `compile()` without a loss: the model's own loss, with the labels as `y` or among the inputs. `sample_weight` and
      `class_weight` need them as `y`, and multiply the loss of each label.

    Metrics see the same pairs. A label of -100 has the sample weight 0 in `weighted_metrics`.
    """

    #: name of a label -> field of the output that it is compared with
    targets: ClassVar[Mapping[str, str]] = {}
    #: the label that has a value for each token, if there is one
    token_label: ClassVar[str | None] = None
    config: Any
    #: of `keras.Model`
    loss: Any
    losses: list[Tensor]

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor], weights: Tensor | None = None) -> Tensor:
        """The model's own loss, (1,).

        Args:
            output: Output of the model.
            labels: Every label of `targets`, by name.
            weights: Factor of each label's loss.
        """
        raise InputError(f"{type(self).__name__} has no loss of its own: pass one to compile()")

    def align(self, labels: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The labels and scores that the model's own loss compares, for metrics; a causal model shifts them."""
        return labels, scores

    def with_loss(self, output: TFModelOutput, **labels: Tensor | None) -> TFModelOutput:
        """Set `output.loss` if every label is given."""
        if all(label is not None for label in labels.values()):
            output["loss"] = self.task_loss(output, labels)
        return output

    def states_read(self, labels: Mapping[str, Tensor | None], training: bool | None) -> bool | Tensor:
        """Which states at padding a loss of this call reads: all, none, or those where a boolean (B, S) is True.

        A label at padding counts unless it is -100. Where labels come later, and are not known, all states are needed,
        unless the configuration insists on packing.
        """
        if self.token_label is None:
            return False
        label = labels.get(self.token_label)
        if label is None:
            label = _coming.get() if _coming.get() is not None else training
        if label is None or isinstance(label, bool):
            return bool(label) and self.config.attn_implementation != "packed"  # who asks for packing gets it
        counts = ops.not_equal(label, ops.cast(IGNORE_INDEX, label.dtype))
        # the score that a label is compared with may stand at another token
        aligned, _ = self.align(counts, counts)
        behind = ops.shape(counts)[1] - ops.shape(aligned)[1]
        return aligned if isinstance(behind, int) and behind == 0 else ops.pad(aligned, ((0, 0), (0, behind)))

    # -- hooks of keras.Model --------------------------------------------------------------------------------------

    def compile(self, *arguments: Any, **settings: Any) -> None:
        """Say how to train; see `keras.Model.compile`.

        As with the reference, one flat list of `metrics` or `weighted_metrics` serves every label of a task with
        several, unless it has as many entries as there are labels: these go to one label each.
        """
        for name in {"metrics", "weighted_metrics"} & set(settings):
            settings[name] = self._of_every_label(settings[name])
        parent: Any = super()
        parent.compile(*arguments, **settings)

    def compile_from_config(self, config: Any) -> None:
        """As of `keras.Model`: compile a model that was saved."""
        model: Any = self
        model.compile(**keras.saving.deserialize_keras_object(config))
        if model.optimizer is not None and model.built:
            model.optimizer.build(model.trainable_variables)

    def _of_every_label(self, metrics: Any) -> Any:
        """A list of metrics for each label, of one that is for all; anything else as it is."""
        count = len(self.targets)
        if count < 2 or not isinstance(metrics, list | tuple) or len(metrics) == count:
            return metrics
        if any(isinstance(metric, list | tuple | Mapping) for metric in metrics):
            return metrics
        return [list(metrics), *([_fresh(metric) for metric in metrics] for _ in range(1, count))]

    def train_step(self, *arguments: Any) -> Any:
        """As of `keras.Model`; the forward pass knows the labels that come as `y`."""
        parent: Any = super()
        with self._labels_of(arguments[-1]):
            return parent.train_step(*arguments)

    def test_step(self, *arguments: Any) -> Any:
        """As of `keras.Model`; the forward pass knows the labels that come as `y`."""
        parent: Any = super()
        with self._labels_of(arguments[-1]):
            return parent.test_step(*arguments)

    @contextmanager
    def _labels_of(self, data: Any) -> Iterator[None]:
        """In the block `states_read` knows of the labels of this batch."""
        _, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        labels = None
        if y is not None:  # a loss of `compile` may count any label
            labels = True if self.loss is not None else self._label_dict(y).get(self.token_label or "", True)
        token = _coming.set(labels)
        try:
            yield
        finally:
            _coming.reset(token)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        """The loss that `fit` minimises: the one given to `compile`, or else the model's own; plus added losses."""
        parent: Any = super()
        _check_named(y_pred)
        if self.loss is not None:
            y, y_pred = self._pair(y, y_pred)
            return parent.compute_loss(x, y, y_pred, sample_weight, training=training)
        if y is not None:
            own = self.task_loss(y_pred, self._label_dict(y), _one_weight(sample_weight))
        elif sample_weight is not None:
            raise InputError("sample_weight and class_weight need the labels as y. Received: labels among the inputs")
        elif y_pred.get("loss") is not None:
            own = y_pred["loss"]
        else:
            wanted = ", ".join(self.targets) or "none"
            raise InputError(
                f"training without a loss in compile() needs labels, as y or among the inputs ({wanted}). "
                "Received: neither"
            )
        added = [ops.sum(ops.cast(loss, own.dtype)) for loss in self.losses]
        return sum(added, ops.mean(own))

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Update and report the metrics; labels among the inputs serve if there is no `y`."""
        parent: Any = super()
        _check_named(y_pred)
        if y is None and isinstance(x, Mapping) and all(name in x for name in self.targets):
            y = {name: x[name] for name in self.targets}
            y = next(iter(y.values())) if len(y) == 1 else y
        if y is not None:
            y, y_pred = self._pair(y, y_pred)
            if not isinstance(y, Mapping | Sequence):
                y, y_pred = self.align(y, y_pred) if self.loss is None else (y, y_pred)
                sample_weight = _counts(y) if sample_weight is None else sample_weight
        return parent.compute_metrics(x, y, y_pred, sample_weight)

    def _label_dict(self, y: Any) -> dict[str, Tensor]:
        """Labels by name, from a tensor, a tuple in the order of `targets`, or a dict."""
        if isinstance(y, Mapping):
            named = {_label_of(name, self.targets): value for name, value in y.items()}
        elif isinstance(y, list | tuple):
            named = dict(zip(self.targets, y, strict=False)) if len(y) == len(self.targets) else {}
        else:
            named = dict.fromkeys(self.targets, y) if len(self.targets) == 1 else {}
        if not self.targets or set(named) != set(self.targets):
            received = ", ".join(map(str, y)) if isinstance(y, Mapping) else type(y).__name__
            raise InputError(f"y must hold the labels {', '.join(self.targets)}. Received: {received}")
        return named

    def _pair(self, y: Any, output: ModelOutput) -> tuple[Any, Any]:
        """Labels, and in the same structure the fields of the output that they are compared with."""
        if isinstance(y, Mapping):
            y = dict(y)
            if len(y) == 1 and len(self.targets) == 1:
                return next(iter(self._label_dict(y).values())), output[next(iter(self.targets.values()))]
            return y, {name: output[self.targets.get(name, name)] for name in y}
        fields = tuple(self.targets.values())
        if not fields:
            raise InputError(f"{type(self).__name__} has no task, so y must be a dict by output name")
        if len(fields) == 1 and not isinstance(y, list | tuple):
            return y, output[fields[0]]
        labels = self._label_dict(y)
        return tuple(labels.values()), tuple(output[field] for field in fields)

    # -- methods that take data -------------------------------------------------------------------------------------

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see `keras.Model.fit`. `x` may also be the output of a tokenizer."""
        if "validation_data" in kwargs:
            kwargs["validation_data"] = plain(kwargs["validation_data"])
        if hasattr(x, "element_spec") and not args:
            kwargs.setdefault("shuffle", False)  # Keras warns that it does not shuffle a tf.data.Dataset
        parent: Any = super()
        with _weights_of(x, args, kwargs):
            return parent.fit(plain(x), plain(y), *args, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Loss and metrics; see `keras.Model.evaluate`. `x` may also be the output of a tokenizer."""
        parent: Any = super()
        with _weights_of(x, args, kwargs):
            return parent.evaluate(plain(x), plain(y), *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Outputs for many inputs; see `keras.Model.predict`. `x` may also be the output of a tokenizer."""
        parent: Any = super()
        return parent.predict(plain(x), *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """One step; see `keras.Model.train_on_batch`. `x` may also be the output of a tokenizer."""
        parent: Any = super()
        return parent.train_on_batch(plain(x), plain(y), *args, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Loss and metrics of a batch; see `keras.Model.test_on_batch`."""
        parent: Any = super()
        return parent.test_on_batch(plain(x), plain(y), *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """Outputs of a batch; see `keras.Model.predict_on_batch`."""
        parent: Any = super()
        return parent.predict_on_batch(plain(x))


def _fresh(metric: Any) -> Any:
    """A metric of the same settings that counts by itself."""
    return type(metric).from_config(metric.get_config()) if isinstance(metric, keras.metrics.Metric) else metric


def _label_of(name: str, targets: Mapping[str, str]) -> str:
    """The label that a key of `y` means: its own name, or the field that it is compared with."""
    return next((label for label, field in targets.items() if field == name), name)


@contextmanager
def _weights_of(x: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """In the block it is known whether weights of each label are one array that Keras repeats for all of them."""
    is_one = not (args or hasattr(x, "element_spec") or isinstance(kwargs.get("sample_weight"), Mapping | list | tuple))
    token = _repeats_weights.set(is_one and isinstance(plain(x), Mapping | np.ndarray))
    try:
        yield
    finally:
        _repeats_weights.reset(token)


def _one_weight(sample_weight: Any) -> Tensor | None:
    if isinstance(sample_weight, Mapping | list | tuple) and _repeats_weights.get():
        sample_weight = next(iter(sample_weight.values() if isinstance(sample_weight, Mapping) else sample_weight))
    if isinstance(sample_weight, Mapping | list | tuple):
        raise InputError(
            "the model's own loss takes one sample_weight for all labels; a loss in compile() takes one for each. "
            f"Received: {type(sample_weight).__name__}"
        )
    return None if sample_weight is None else ops.convert_to_tensor(sample_weight)


def _check_named(y_pred: Any) -> None:
    if not isinstance(y_pred, ModelOutput):
        raise InputError("training needs outputs by name: config.return_dict must be True. Received: False")


def _counts(labels: Tensor) -> Tensor | None:
    """1 for integer labels that count and 0 for ignored ones; None for other labels."""
    dtype = keras.backend.standardize_dtype(labels.dtype)
    return ops.cast(labels != IGNORE_INDEX, "float32") if "int" in dtype else None
