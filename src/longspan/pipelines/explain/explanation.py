"""What a model looks at in a document: attention that tokens receive and give, and gradient times input. PyTorch.

Axes: L layers, A heads, S tokens of a row, T tokens of the document, N links of a token, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longspan.documents.document import replace_surrogates
from longspan.documents.tokens import tokenize
from longspan.documents.windows import check_windows, owned_ranges, plan_windows
from longspan.errors import InputError
from longspan.pipelines.backends import longest_input
from longspan.pipelines.base import Job, Pipeline, check_text
from longspan.pipelines.explain.attention_maps import NOTES, Piece, layer_maps, received, sent, strongest
from longspan.pipelines.long.rows import RowTemplate
from longspan.pipelines.text_generation import GenerationPipeline

Floats = npt.NDArray[np.float32]

#: Links that an explanation keeps, about: of each token, in each layer and head, those to the tokens it looks at most.
_LINKS = 1_500_000
_MOST_LINKS = 8
_NO_LIMIT = 1 << 30


@dataclass(frozen=True, eq=False)
class Explanation:
    """What was seen, for each token of the document.

    Attributes:
        text: The document.
        starts: (T,) first character of each token.
        ends: (T,) one past its last character.
        received: (L, A, T) mean attention that each token receives from all tokens of its window.
        from_anchor: (L, A, T) attention of the window's first token to each; of the last one if the model is causal.
        anchor: `"first"` or `"last"`.
        linked: (L, A, T, N) tokens that each token looks at most.
        links: (L, A, T, N) how strongly; 0 where there is none.
        gradient: (T,) sum over H of gradient times input embedding, of the score that the model is surest of.
        model: Name of the model's class.
        task: The task.
        num_windows: Windows that the document was read in.
        note: What the maps of this family show.
        query: The text that the document was compared with, or nothing.
    """

    text: str
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    received: Floats
    from_anchor: Floats
    anchor: str
    linked: npt.NDArray[np.int64]
    links: Floats
    gradient: Floats
    model: str
    task: str
    num_windows: int
    note: str
    query: str = ""


@dataclass(frozen=True, eq=False)
class _Reading:
    """A model with what it is to read: the inputs of each row, and the score of its output."""

    model: Any
    task: str
    job: Job
    inputs: Callable[[Any], dict[str, Tensor]]
    score: Callable[[Any], Tensor]


def explain(pipeline: Any, item: Any, *, query: str | None = None, **settings: Any) -> Explanation:
    """Look at a document through a model.

    Gradient times input is taken of the score that the model is surest of: of its best label at each place, of the best
    start and end of an answer, of the next tokens that a language model expects, of the first token that an encoder and
    decoder would write, or, without a head, of the squared length of its states. With `query` it is taken of the cosine
    between the means of the states of the document's window and of the query: what in the document matches it.

    Args:
        pipeline: The task with its model, in PyTorch.
        item: An input of the pipeline; of a pair, the document is explained.
        query: A text that the document is compared with, for feature extraction.
        **settings: Options of the pipeline for this call; tasks that write know `max_length` and `stride` here.

    Returns:
        The explanation. Of a document longer than the model each token is seen in the window that shows it with the
        most context.

    Raises:
        InputError: the pipeline runs in another framework, gives no attention, or the input breaks a rule.
    """
    if not isinstance(pipeline, Pipeline | GenerationPipeline) or pipeline.task == "multiple-choice":
        name = getattr(pipeline, "task", type(pipeline).__name__)
        raise InputError(f"explain needs a task that reads one document with one model. Received: {name}")
    if pipeline.framework != "torch":
        raise InputError(f"explain needs framework='torch'. Received: framework={pipeline.framework!r}")
    if query is not None and pipeline.task != "feature-extraction":
        raise InputError(f"A query needs task='feature-extraction'. Received: task={pipeline.task!r}")
    if isinstance(pipeline, GenerationPipeline):
        return _explain(_read_to_write(pipeline, item, **settings))
    text = item.get("context") if isinstance(item, dict) else item
    if isinstance(text, str) and not text.strip():
        raise InputError(f"A document to explain must hold text. Received: {text!r}")
    return replace(_explain(_read(pipeline, item, query, settings)), query=query or "")


def _read(pipeline: Pipeline, item: Any, query: str | None, settings: dict[str, Any]) -> _Reading:
    model = pipeline.model.model
    device = next(model.parameters()).device

    def inputs(row: Any) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array).to(device) for name, array in pipeline.stack_rows([row]).items()}

    options = pipeline.options.updated(settings, pipeline.task)
    job, score = pipeline.prepare(item, options), _surest
    if query is not None:
        with torch.no_grad():
            wanted: Tensor = model(**inputs(pipeline.prepare(query, options).rows[0]))[0].mean(dim=1)

        def score(output: Any) -> Tensor:
            return torch.cosine_similarity(output[0].mean(dim=1), wanted).sum()

    return _Reading(model, pipeline.task, job, inputs, score)


def _read_to_write(
    pipeline: GenerationPipeline, item: Any, *, max_length: int | None = None, stride: int | None = None
) -> _Reading:
    """The same for tasks that write: what they read is explained, in windows that do not depend on what is written."""
    model: Any = pipeline.model
    fast = pipeline.tokenizer.backend_tokenizer
    template = RowTemplate(fast)
    limit = min(longest_input(model.config) or _NO_LIMIT, int(pipeline.tokenizer.model_max_length))
    if max_length is not None and not 1 <= max_length <= limit:
        raise InputError(f"max_length must lie in [1, {limit}]. Received: max_length={max_length}")
    text = replace_surrogates(check_text(item))
    [tokens] = tokenize(fast, [text])
    capacity = (max_length or limit) - template.num_special
    overlap = capacity // 8 if stride is None else stride
    check_windows(capacity, overlap)
    windows = plan_windows(len(tokens.ids), capacity, overlap) or [(0, 0)]
    wrapped = [template.wrap(tokens.ids[start:stop]) for start, stop in windows]
    job = Job(text, tokens, windows, [row for row, _ in wrapped], wrapped[0][1][0])
    is_seq2seq = model.config.is_encoder_decoder

    def inputs(row: Any) -> dict[str, Tensor]:
        given = {"input_ids": torch.from_numpy(row.ids)[None].to(model.device)}
        if is_seq2seq:
            given["decoder_input_ids"] = torch.full((1, 1), model.config.decoder_start_token_id, device=model.device)
        return given

    return _Reading(model, pipeline.task, job, inputs, _surest)


def _explain(reading: _Reading) -> Explanation:
    job, config = reading.job, reading.model.config
    if not len(job.tokens.ids):
        raise InputError("A text must have at least one token. Received: a text without any")
    is_causal = config.model_type == "diffllama" or bool(getattr(config, "is_decoder", False))
    parts = []
    for row, window, own in zip(job.rows, job.windows, owned_ranges(job.windows), strict=True):
        parts.append(_look(reading, row, window, own, is_causal))
    joined = [np.concatenate(of_kind, axis=axis) for of_kind, axis in zip(zip(*parts, strict=True), _AXES, strict=True)]
    shown = job.windows[-1][1]
    return Explanation(
        text=job.text,
        starts=job.tokens.starts[:shown],
        ends=job.tokens.ends[:shown],
        received=joined[0],
        from_anchor=joined[1],
        anchor="last" if is_causal else "first",
        linked=joined[2],
        links=joined[3],
        gradient=joined[4],
        model=type(reading.model).__name__,
        task=reading.task,
        num_windows=len(job.rows),
        note=NOTES.get(config.model_type, ""),
    )


#: Axes of the tokens in what `_look` returns.
_AXES = (-1, -1, -2, -2, -1)


def _look(
    reading: _Reading, row: Any, window: tuple[int, int], own: tuple[int, int], is_causal: bool
) -> tuple[npt.NDArray[Any], ...]:
    """Received, of the anchor, linked, links and gradient of the tokens `own` of the document, seen in `window`."""
    inputs = reading.inputs(row)
    lead, length = reading.job.lead, len(row)
    begin, end = lead, lead + window[1] - window[0]
    mine = slice(lead + own[0] - window[0], lead + own[1] - window[0])
    layers = _maps(reading.model, inputs, length)
    num_heads = layers[0][0].weights.shape[0]
    count = min(_MOST_LINKS, max(1, _LINKS // (len(layers) * num_heads * len(reading.job.tokens.ids))))
    anchor = end - 1 if is_causal else 0
    shown = [
        (received(pieces, length)[:, mine], sent(pieces, anchor, length)[:, mine],
         *(found[:, mine] for found in strongest(pieces, length, begin, end, count)))
        for pieces in layers
    ]  # fmt: skip
    of_tokens, of_anchor, linked, links = (torch.stack(kind).numpy() for kind in zip(*shown, strict=True))
    gradient = _gradient(reading, inputs)[mine]
    return of_tokens, of_anchor, np.clip(linked - lead, 0, end - begin - 1) + window[0], links, gradient


@torch.no_grad()
def _maps(model: Any, inputs: dict[str, Tensor], length: int) -> list[list[Piece]]:
    signed = model.config.model_type == "diffllama"
    asked = {"output_differential_attentions": True} if signed else {"output_attentions": True}
    layers = layer_maps(model(**inputs, **asked), length, inputs.get("global_attention_mask"), model.config)
    if not layers:
        raise InputError(f"explain needs a model that returns attention. Received: {type(model).__name__}")
    return layers


def _gradient(reading: _Reading, inputs: dict[str, Tensor]) -> Floats:
    """Gradient times input of the score, (S,)."""
    others = {name: values for name, values in inputs.items() if name != "input_ids"}
    embeds = reading.model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(reading.score(reading.model(inputs_embeds=embeds, **others)), embeds)
    product: Floats = (gradient * embeds).sum(dim=-1)[0].detach().float().cpu().numpy()
    return product


def _surest(output: Any) -> Tensor:
    """The score to explain: the sum of what the model is surest of at each place, or the size of its states."""
    if "start_logits" in output:
        best: Tensor = output["start_logits"].amax() + output["end_logits"].amax()
        return best
    if "logits" in output:
        total: Tensor = output["logits"].amax(dim=-1).sum()
        return total
    size: Tensor = output[0].pow(2).sum()
    return size
