"""How much memory a step of training takes, without making it: a model of memory, and what fits on GPUs.

    peak = weights + moments + max(activations, gradients + one more copy of what the optimizer works on)

Weights, gradients and moments follow from the parameters. Activations, with what the backward pass of a layer needs
besides, are linear in the number of tokens and of layers as all operations of longspan are, so that four small steps,
of one and two layers and two lengths, give them for all: what each allocates and frees is counted, gradients aside.
(Attention over all tokens is linear too: no implementation keeps its weights.) What they take for a token is
linear in the widths of a model and in its vocabulary as well, so that narrow models tell those of wide ones; the rest,
which long sequences dwarf, nearly so.

`python -m longspan.training.capacity` prints the table of what fits, which is `benchmarks/results/training-memory.md`.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

import longspan

#: lengths of the small steps, and their numbers of layers
PROBE_TOKENS = (512, 1024)
PROBE_LAYERS = (1, 2)


class _Ledger(TorchDispatchMode):
    """Writes down every allocation and release of storage by operations inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[int, int]] = []  # bytes, negative at the end; number of the storage
        self._known: Any = WeakIdKeyDictionary()
        self._numbers = itertools.count()

    def number_of(self, tensor: Tensor) -> int | None:
        """Number of the storage of a tensor, if it was made inside the block."""
        found = self._known.get(tensor.untyped_storage())
        return None if found is None else int(found[0])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage not in self._known and id(storage) not in given:
                    number, size = next(self._numbers), storage.nbytes()
                    self.entries.append((size, number))
                    self._known[storage] = (number, weakref.ref(storage, partial(self._release, number, size)))
        return output

    def _release(self, number: int, size: int, _: object) -> None:
        self.entries.append((-size, number))


def activation_peak(model: Any, inputs: dict[str, Tensor]) -> int:
    """Most bytes that a forward and backward pass holds at once besides weights and gradients.

    Args:
        model: A model with a loss, in training mode; its gradients are thrown away.
        inputs: Arguments of a call, labels included.
    """
    table: Tensor = model.get_input_embeddings().weight
    with _Ledger() as ledger:
        loss = model(**inputs).loss
        loss.backward()
    gradients = {ledger.number_of(each.grad) for each in model.parameters() if each.grad is not None}
    model.zero_grad(set_to_none=True)
    # a part of the gradient of shared embeddings is as large as these, and no activation
    sizes = (size for size, number in ledger.entries if number not in gradients and abs(size) != table.nbytes)
    return int(max(itertools.accumulate(sizes)))


class Activations(NamedTuple):
    """Activations of a sequence at their peak, in bytes.

    Attributes:
        fixed: Whatever the length.
        by_token: Of a token outside of the layers.
        by_layer: Of a layer, whatever the length.
        by_token_and_layer: Of a token in a layer.
    """

    fixed: float
    by_token: float
    by_layer: float
    by_token_and_layer: float

    def bytes(self, tokens: int, num_layers: int) -> float:
        """Of a sequence in a model."""
        return self.fixed + self.by_layer * num_layers + tokens * (self.by_token + self.by_token_and_layer * num_layers)


@dataclass(frozen=True)
class MemoryModel:
    """Memory of a step of training a model with AdamW in float32, in bytes.

    Attributes:
        weights: Of all parameters.
        largest: Of the largest parameter.
        layer: Of the weights of a layer.
        activations: Those of a sequence.
        num_layers: Layers of the model.
    """

    weights: int
    largest: int
    layer: int
    activations: Activations
    num_layers: int

    def peak(self, tokens: int, *, gpus: int = 1, shares: int = 1, copies: bool = False) -> float:
        """Bytes that one device needs at most for a step.

        Args:
            tokens: Length of its sequence.
            gpus: Devices that share weights, gradients and moments (FSDP); each holds two layers whole at a time.
            shares: Devices that share a sequence (context parallelism).
            copies: The optimizer works on all parameters at once, as PyTorch's does on a GPU, and so needs a copy.
        """
        whole = 2 * self.layer if gpus > 1 else 0
        update = (self.weights if copies else self.largest) / gpus
        activations = self.activations.bytes(tokens // shares, self.num_layers)
        return 3 * self.weights / gpus + whole + max(activations, self.weights / gpus + update)


def sequence(model: Any, tokens: int, *, target: int = 16) -> dict[str, Any]:
    """Arguments of a call on one sequence, labels for all its tokens included.

    Args:
        model: A model that scores tokens, or writes.
        tokens: Length of the sequence.
        target: Tokens to write, in a model with a decoder.
    """
    config = model.config
    ids = torch.randint(5, config.vocab_size, (1, tokens))
    if config.is_encoder_decoder:
        return {"input_ids": ids, "labels": ids[:, :target], "use_cache": False}
    writes = type(model).__name__.endswith("ForCausalLM")
    return {"input_ids": ids, "labels": ids if writes else ids % config.num_labels}


def fit_activations(make: Callable[[int], Any], *, recompute: bool) -> Activations:
    """Activations by four small steps.

    Args:
        make: Makes the model with a number of layers.
        recompute: Activations are recomputed in the backward pass (gradient checkpointing).
    """
    peaks = {}
    for layers in PROBE_LAYERS:
        model = make(layers).train()
        if recompute:
            model.gradient_checkpointing_enable()
        for tokens in PROBE_TOKENS:
            peaks[layers, tokens] = activation_peak(model, sequence(model, tokens))
    (one, two), (short, long) = PROBE_LAYERS, PROBE_TOKENS
    slopes = {layers: (peaks[layers, long] - peaks[layers, short]) / (long - short) for layers in PROBE_LAYERS}
    starts = {layers: peaks[layers, short] - short * slopes[layers] for layers in PROBE_LAYERS}
    return Activations(
        fixed=2 * starts[one] - starts[two],
        by_token=2 * slopes[one] - slopes[two],
        by_layer=starts[two] - starts[one],
        by_token_and_layer=slopes[two] - slopes[one],
    )


def memory_model(make: Callable[[int], Any], num_layers: int, activations: Activations) -> MemoryModel:
    """Count the parameters of a model, whose weights take no memory meanwhile.

    Args:
        make: Makes the model with a number of layers.
        num_layers: Layers of the model.
        activations: Of a sequence.
    """
    with torch.device("meta"):
        sizes = [[4 * each.numel() for each in make(layers).parameters()] for layers in PROBE_LAYERS]
    layer = sum(sizes[1]) - sum(sizes[0])
    return MemoryModel(sum(sizes[0]) + layer * (num_layers - 1), max(sizes[0]), layer, activations, num_layers)


class Size(NamedTuple):
    """Sizes of a model: width, width inside of its feed-forward layers, ids of its vocabulary, layers."""

    width: int
    inner: int
    vocabulary: int
    layers: int


#: narrow models from which the activations of wide ones follow
_PROBES = (Size(128, 256, 1000, 1), Size(256, 256, 1000, 1), Size(128, 512, 1000, 1), Size(128, 256, 2000, 1))


def _longformer(size: Size) -> Any:
    return longspan.LongformerForTokenClassification(
        longspan.LongformerConfig(
            hidden_size=size.width, intermediate_size=size.inner, vocab_size=size.vocabulary,
            num_hidden_layers=size.layers, num_attention_heads=size.width // 64, max_position_embeddings=65538,
        )
    )  # fmt: skip


def _longt5(size: Size) -> Any:
    return longspan.LongT5ForConditionalGeneration(
        longspan.LongT5Config(
            d_model=size.width, d_ff=size.inner, vocab_size=size.vocabulary, num_layers=size.layers, d_kv=64,
            num_heads=size.width // 64, feed_forward_proj="gated-gelu", encoder_attention_type="transient-global",
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def _mega(size: Size) -> Any:
    return longspan.MegaForTokenClassification(
        longspan.MegaConfig(
            hidden_size=size.width, intermediate_size=size.inner, nffn_hidden_size=size.inner,
            vocab_size=size.vocabulary, num_hidden_layers=size.layers, use_chunking=True, chunk_size=128,
        )
    )  # fmt: skip


def _diffllama(size: Size) -> Any:
    return longspan.DiffLlamaForCausalLM(
        longspan.DiffLlamaConfig(
            hidden_size=size.width, intermediate_size=size.inner, vocab_size=size.vocabulary,
            num_hidden_layers=size.layers, num_attention_heads=size.width // 64, num_key_value_heads=size.width // 64,
        )
    )  # fmt: skip


#: how a family's model is made, its sizes, and the fewest tokens of a share (0: sequences are not shared)
FAMILIES: Mapping[str, tuple[Callable[[Size], Any], Mapping[str, Size], int]] = {
    "Longformer": (_longformer, {"base": Size(768, 3072, 50265, 12), "large": Size(1024, 4096, 50265, 24)}, 256),
    "LongT5": (
        _longt5,
        {"base": Size(768, 2048, 32128, 12), "large": Size(1024, 2816, 32128, 24), "xl": Size(2048, 5120, 32128, 24)},
        128,
    ),
    "MEGA": (_mega, {"128 x 4": Size(128, 256, 50265, 4), "1024 x 16": Size(1024, 2048, 50265, 16)}, 128),
    "DiffLlama": (_diffllama, {"1024 x 24": Size(1024, 2816, 32000, 24), "3072 x 28": Size(3072, 8192, 32000, 28)}, 0),
}


def _of_layers(make: Callable[[Size], Any], size: Size) -> Callable[[int], Any]:
    return lambda layers: make(size._replace(layers=layers))


def activations_by_size(make: Callable[[Size], Any], *, recompute: bool) -> Callable[[Size], Activations]:
    """Activations of any size of a family, from those of narrow models: each number is linear in the sizes.

    Args:
        make: Makes a model of a size.
        recompute: Activations are recomputed in the backward pass.
    """
    features = np.array([[1, size.width, size.inner, size.vocabulary] for size in _PROBES], dtype=float)
    found = [fit_activations(_of_layers(make, size), recompute=recompute) for size in _PROBES]
    factors = np.linalg.solve(features, np.array(found))

    def activations(size: Size) -> Activations:
        return Activations(*(np.array([1, size.width, size.inner, size.vocabulary]) @ factors).tolist())

    return activations


_GPU = 80e9 * 0.94  # what the driver and gaps between blocks leave, about
_GPUS = (1, 8, 64)
_TOKENS = (4096, 16384, 65536)


def table() -> str:
    """What fits on GPUs of 80 GB, as a table in Markdown."""
    heads = [f"{tokens // 1024}k on {gpus}" for tokens in _TOKENS for gpus in _GPUS]
    lines = ["| model | parameters | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    for family, (make, sizes, reach) in FAMILIES.items():
        fitted = {recompute: activations_by_size(make, recompute=recompute) for recompute in (False, True)}
        for name, size in sizes.items():
            models = {key: memory_model(_of_layers(make, size), size.layers, fitted[key](size)) for key in fitted}
            cells = [_cell(models, tokens, gpus, reach) for tokens in _TOKENS for gpus in _GPUS]
            count = models[False].weights / 4e6
            lines.append(f"| {family} {name} | {count:,.0f} M | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(models: Mapping[bool, MemoryModel], tokens: int, gpus: int, reach: int) -> str:
    """Gigabytes of a GPU by the first means that makes the step fit, and a letter for it; "-" if none does."""
    shares = gpus if reach and tokens // gpus >= reach else 1
    means = (("", False, 1), (" r", True, 1), (" c", True, shares))
    for letter, recompute, parts in means:
        peak = models[recompute].peak(tokens, gpus=gpus, shares=parts, copies=True)
        if peak <= _GPU:
            return f"{peak / 1e9:.1f}{letter}"
    return "-"


if __name__ == "__main__":
    print(f"""# What fits: a step of training on GPUs of 80 GB

GB of one GPU that a step of AdamW in float32 needs for one sequence a GPU, by the model of memory of
`longspan.training.capacity`, which `python -m longspan.training.capacity` prints. On several GPUs weights, gradients
and moments are sharded (FSDP). r: with activations recomputed; c: recomputed, and each sequence shared by all GPUs
(context parallelism); -: does not fit. 94 % of a GPU are counted on. Activations are those of the operations on a CPU.
Longformer and MEGA classify tokens, LongT5 (transient-global) writes 16 tokens, DiffLlama predicts each next token.
BERT and RoBERTa read 512 tokens.

{table()}""")
