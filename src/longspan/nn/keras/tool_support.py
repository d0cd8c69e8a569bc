"""What scripts for the reference's TensorFlow models ask of a model besides calls, `fit`, loading and saving."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import keras
import numpy as np
from keras import ops

from longspan.checkpoints.upload import HubSupport
from longspan.configuration import PretrainedConfig
from longspan.nn.keras.heads import VocabularyHead
from longspan.nn.keras.inputs import input_names
from longspan.nn.keras.runtime import is_tensorflow
from longspan.ops.keras import Tensor

#: columns of a data set that hold what the models call `labels`
_LABELS = ("label", "labels", "label_ids")
_HEADS = ("lm_head", "mlm_head")


class ToolSupport(HubSupport):
    """Attributes and methods of the reference's base class that scripts look up; none is needed otherwise."""

    targets: ClassVar[Mapping[str, str]]
    if TYPE_CHECKING:
        call: Any
        get_input_embeddings: Any
        get_input_signature: Any
        _flatten_layers: Any

    @classmethod
    def can_generate(cls) -> bool:
        """True if models of this class have `generate`."""
        return False

    @classmethod
    def _from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Self:
        """A model with random weights, as the constructor makes it."""
        return cls(config, **kwargs)  # type: ignore[call-arg]  # of the model that it is mixed into

    @property
    def framework(self) -> str:
        """`"tf"`, whatever backend Keras runs on: pipelines ask by that name for the Keras classes."""
        return "tf"

    def resize_output_embeddings(self, size: int, *, mean_resizing: bool) -> None:
        """Give the projection onto the vocabulary, if there is one, `size` outputs."""

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """A small batch of every usual input."""
        specs = self.get_input_signature()
        return {name: ops.ones([size or 2 for size in spec.shape], "int32") for name, spec in specs.items()}

    @property
    def input_signature(self) -> dict[str, Any]:
        """Shapes and dtypes of the usual inputs, on TensorFlow as `tf.TensorSpec`."""
        specs = self.get_input_signature()
        if not is_tensorflow():
            return dict(specs)
        import tensorflow as tf

        return {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in specs.items()}

    def build_in_name_scope(self) -> None:
        """Do nothing: every model makes its weights when it is made."""

    def serving_output(self, output: Any) -> Any:
        """The output, which a SavedModel returns as it is but for numbered names (see `export`)."""
        return output

    def get_lm_head(self) -> keras.layers.Layer | None:
        """The layer that scores the vocabulary; None without one, also where the embeddings alone score."""
        layers = self._flatten_layers(include_self=False, recursive=True)
        heads = (layer for layer in layers if isinstance(layer, VocabularyHead))
        return next(heads, next((getattr(self, name) for name in _HEADS if hasattr(self, name)), None))

    def get_output_embeddings(self) -> keras.layers.Layer | None:
        """The layer whose weights score the vocabulary: the input embeddings where it is tied, None without a head."""
        if type(self).resize_output_embeddings is ToolSupport.resize_output_embeddings:
            return None
        head = self.get_lm_head()
        if isinstance(head, VocabularyHead):
            return self.get_input_embeddings() if head.is_tied else head.decoder
        return self.get_input_embeddings() if head is None else head

    def get_bias(self) -> dict[str, Any] | None:
        """The bias of the scores by name; None if they have none."""
        head = self.get_lm_head()
        bias = None if head is None else getattr(head, "bias", None)
        return None if bias is None else {bias.path: bias.value if is_tensorflow() else bias}

    def prepare_tf_dataset(
        self,
        dataset: Any,
        batch_size: int = 8,
        shuffle: bool = True,
        tokenizer: Any = None,
        collate_fn: Callable[..., Any] | None = None,
        collate_fn_args: dict[str, Any] | None = None,
        drop_remainder: bool = False,
        prefetch: bool = True,
    ) -> Any:
        """Make a `tf.data.Dataset` of a data set of the package `datasets`: batches of inputs, and of labels if any.

        Columns that the model does not read are left out; `label` and `label_ids` are `labels`.

        Args:
            dataset: A `datasets.Dataset`.
            batch_size: Rows of a batch.
            shuffle: Draw the rows in a random order.
            tokenizer: Pads the rows of each batch to one length.
            collate_fn: Makes a batch, a dict of arrays, of a list of rows; default: pad or stack them.
            collate_fn_args: Its further arguments.
            drop_remainder: Leave out a last batch with fewer rows. The reference does so where it shuffles.
            prefetch: Make batches ahead.
        """
        names = input_names(type(self).call)
        labels = [name for name in names if name in self.targets]
        read = [*names, *(_LABELS if "labels" in labels else ())]
        dataset = dataset.remove_columns([name for name in dataset.column_names if name not in read])
        columns = ["labels" if name in _LABELS else name for name in dataset.column_names]
        return dataset.to_tf_dataset(
            batch_size=batch_size,
            columns=[name for name in columns if name not in labels],
            label_cols=[name for name in columns if name in labels] or None,
            shuffle=shuffle,
            drop_remainder=drop_remainder,
            collate_fn=collate_fn or _Collator(tokenizer),
            collate_fn_args=collate_fn_args,
            prefetch=prefetch,
        )


class _Collator:
    """Makes a batch of rows."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        named = [{"labels" if name in _LABELS else name: value for name, value in row.items()} for row in rows]
        if self.tokenizer is None:
            return {name: np.stack([np.asarray(row[name]) for row in named]) for name in named[0]}
        return dict(self.tokenizer.pad(named, return_tensors="np"))
