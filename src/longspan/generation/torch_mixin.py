"""The method `generate` of PyTorch models.

Axes: B prompts, S source tokens, L tokens of a prompt, R returned rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from longspan.errors import InputError
from longspan.generation import torch_outputs as outputs
from longspan.generation.beams import BeamRules
from longspan.generation.config import GenerationConfig
from longspan.generation.lengths import combine, filling, greatest_length, least_length, start_tokens
from longspan.generation.rules import rows_per_prompt
from longspan.generation.stored import StoredGenerationConfig
from longspan.generation.streamers import BaseStreamer
from longspan.generation.torch_beams import BeamSearch, beam_outputs
from longspan.generation.torch_loop import Run, StoppingCriteria, make_criteria, search
from longspan.generation.torch_peers import in_step_with_peers
from longspan.generation.torch_prepared import PreparedStepper
from longspan.generation.torch_processors import LogitsProcessor, make_processors
from longspan.generation.torch_prompt import Prompt, align_right, as_ids, as_mask, mask_of_padding
from longspan.generation.torch_stepper import Stepper, make_cache
from longspan.nn.torch.cache import Cache
from longspan.ops.torch.context import ContextShard

#: inputs of models that `generate` makes itself, or that do not matter to it
_OWN_INPUTS = {"return_dict", "logits_to_keep", "cache_position"}
_WITHOUT_EFFECT = ("labels",)
#: arguments of the reference's method that have no counterpart
_ABSENT_ARGUMENTS = (
    "assistant_model",
    "custom_generate",
    "negative_prompt_attention_mask",
    "negative_prompt_ids",
    "use_model_defaults",
)


@dataclass(frozen=True)
class Callbacks:
    """What a caller adds to a run.

    Attributes:
        processors: Rules for scores.
        criteria: Rules that end rows.
        allowed: Function that names the ids that may come next.
        streamer: Takes every token as soon as it is there.
        tokenizer: Has `decode`, for stop strings.
        generator: Source of random numbers; None for PyTorch's own.
    """

    processors: Sequence[LogitsProcessor]
    criteria: Sequence[StoppingCriteria]
    allowed: Callable[[int, Tensor], list[int]] | None
    streamer: BaseStreamer | None
    tokenizer: Any
    generator: torch.Generator | None


class GenerationMixin(StoredGenerationConfig):
    """Gives a model with a language modelling head the method `generate`.

    The annotations name what it needs of the model.
    """

    #: several rows of one prompt read one copy of the encoder's states
    shares_source_between_rows: ClassVar[bool] = False
    device: torch.device
    context_shard: ContextShard | None
    forward: Callable[..., Any]
    #: only models with an encoder have it
    get_encoder: Callable[[], Any]

    # -- what families differ in ------------------------------------------------------------------------------------

    def check_can_generate(self) -> None:
        """Raise `InputError` if the configuration makes the model something else than a decoder."""

    def max_positions(self) -> int | None:
        """Tokens of a row at most, or None if the model has no limit."""
        return None

    def positions_of(self, mask: Tensor) -> Tensor:
        """Positions of a prompt's tokens, (B, L), from its boolean mask (B, L): they skip padding."""
        return (mask.long().cumsum(dim=1) - 1).masked_fill(~mask, 1)

    def make_generation_cache(self, config: GenerationConfig, *, capacity: int) -> Cache | None:
        """An empty cache for `capacity` tokens; None if the model makes its own."""
        return make_cache(config, self.config, capacity=capacity)

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: Sequence[Tensor],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """Scores of the tokens that were generated.

        Args:
            sequences: Ids, (R, L), as `generate` returned them.
            scores: Processed scores of the steps, N × (rows, V), which `output_scores=True` keeps.
            beam_indices: Row of each step that a token came from, (R, N), -1 behind the end; of beam search.
            normalize_logits: Bring the scores of a step to log-probabilities first; beam search did so already.

        Returns:
            (R, N); 0 behind the end of a beam. The sum over a beam, divided by its number of tokens to the power of
            `length_penalty`, is its entry of `sequences_scores`.

        Raises:
            InputError: scores were not kept.
        """
        return outputs.transition_scores(sequences, scores, beam_indices, normalize=normalize_logits)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_position: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of `forward` for the next step of a decoder.

        `generate` has its own way; it uses this method where a tool or a subclass has put another in its place.

        Args:
            input_ids: Ids so far, (R, L); of the target, in a model with an encoder.
            past_key_values: Cache of earlier tokens.
            attention_mask: 1 for real tokens, (R, L); of the source, in a model with an encoder.
            inputs_embeds: Embedded prompt, which is read instead of the ids while the cache is empty.
            cache_position: Positions of the tokens to read; only these are left of `input_ids`.
            **kwargs: Further arguments of `forward`.
        """
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        prefix = "decoder_" if self.config.is_encoder_decoder else ""
        inputs: dict[str, Any] = {f"{prefix}input_ids": input_ids}
        if inputs_embeds is not None and past == 0:
            inputs = {f"{prefix}inputs_embeds": inputs_embeds}
        elif past > 0:
            count = max(1, input_ids.shape[1] - past) if cache_position is None else cache_position.shape[0]
            inputs = {f"{prefix}input_ids": input_ids[:, -count:]}
        kwargs.pop("is_first_iteration", None)
        return {
            **inputs,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "cache_position": cache_position,
            **kwargs,
        }

    # -- generate ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        inputs: Any = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Sequence[StoppingCriteria] | None = None,
        prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
        *,
        streamer: BaseStreamer | None = None,
        tokenizer: Any = None,
        seed: int | None = None,
        synced_gpus: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue prompts, or write what an encoder's input asks for.

        The model generates in evaluation mode and is put back into its own mode at the end, or when it is interrupted.

        Args:
            inputs: Ids of the prompts or of the encoder's input, (B, L), as a tensor, an array or lists; lists may be
                of different lengths. `input_ids` is another name. Without any, generation begins at `bos_token_id`.
            generation_config: Settings; those it leaves open are the model's (`model.generation_config`).
            logits_processor: Further rules for the scores; one of a class that the settings ask for takes its place.
            stopping_criteria: Further rules that end rows.
            prefix_allowed_tokens_fn: Called with the number of the prompt and the ids so far (L,); returns the ids
                that may come next.
            streamer: Takes the prompt and then every token as soon as it is there. Not with beams.
            tokenizer: Needed by `stop_strings`.
            seed: Makes sampling repeat exactly; default PyTorch's own state of random numbers.
            synced_gpus: In several processes that share the weights of the model, call it equally often in all, until
                the longest rows have ended. Default: if `fully_shard` sharded it.
            **kwargs: Settings of `GenerationConfig`, which win over `generation_config`, and inputs of the model's
                `forward`: `attention_mask` (B, L), 0 at padding on either side (default: what `pad_token_id` tells),
                `inputs_embeds` (B, L, H) instead of ids, `past_key_values` with the first tokens of the prompt,
                `encoder_outputs`, `decoder_input_ids`, ...

        Returns:
            Ids (R, L): for a causal model the prompts, their padding moved to the left, and what follows; with
            `return_dict_in_generate=True`, an output of `longspan.generation.torch_outputs`. Rows that ended early are
            filled with `pad_token_id`.

        Raises:
            ConfigError: a setting breaks a rule.
            InputError: an input breaks a rule, is not known, or leaves nothing to generate.
        """
        self.check_can_generate()
        if self.context_shard is not None:
            raise InputError(
                "generate reads whole sequences; context_parallel(model, undo=True) makes the model do so. "
                "Received: a model that shares sequences"
            )
        config, model_inputs = self._split(generation_config, kwargs)
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        callbacks = Callbacks(
            logits_processor or (),
            stopping_criteria or (),
            prefix_allowed_tokens_fn,
            streamer,
            tokenizer,
            generator,
        )
        if streamer is not None and config.num_beams > 1:
            raise InputError(f"a streamer cannot be used with beams. Received: num_beams={config.num_beams}")
        with _evaluating(self), _ending(streamer), in_step_with_peers(self, synced_gpus):
            cache = model_inputs.pop("past_key_values", None)
            encoder, prompt, source = self._read_inputs(config, inputs, model_inputs)
            if cache is not None and not prompt.ends_real:
                raise InputError("with past_key_values, padding must stand at the left. Received: padding at the right")
            prompt = align_right(prompt)
            return self._generate(config, prompt, callbacks, encoder=encoder, source=source, cache=cache)

    def _split(
        self, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """Tell settings from inputs of the model, and combine the settings."""
        own = {name: kwargs.pop(name) for name in list(kwargs) if GenerationConfig.is_setting(name)}
        known = set(inspect.signature(self.forward).parameters) - _OWN_INPUTS
        unknown = {name: value for name, value in kwargs.items() if name not in known or name == "labels"}
        unknown = {name: value for name, value in unknown.items() if name not in _WITHOUT_EFFECT}
        for name in _ABSENT_ARGUMENTS:
            if unknown.get(name) is None:
                unknown.pop(name, None)
        if unknown:
            raise InputError(
                f"generate takes settings of GenerationConfig and inputs of {type(self).__name__}. "
                f"Received as well: {', '.join(sorted(unknown))}"
            )
        config = combine(self.generation_config, generation_config, own)
        given = {name: value for name, value in kwargs.items() if name in known and name != "labels"}
        return config, {name: value for name, value in given.items() if value is not None}

    def _read_inputs(
        self, config: GenerationConfig, inputs: Any, given: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, Prompt, Tensor | None]:
        """The encoder's part (None without one), the prompt of the decoder, and the ids of the source."""
        if "input_ids" in given:
            if inputs is not None:
                raise InputError("inputs and input_ids are two names of one argument. Received: both")
            inputs = given.pop("input_ids")
        if self.config.is_encoder_decoder:
            encoder, source, batch = self._encode(config, inputs, given)
            return encoder, self._decoder_prompt(config, given, batch), source
        prompt = self._causal_prompt(config, inputs, given)
        return None, prompt, prompt.ids if prompt.ids.shape[1] else None

    def _causal_prompt(self, config: GenerationConfig, inputs: Any, given: dict[str, Any]) -> Prompt:
        embeds, mask = given.pop("inputs_embeds", None), given.pop("attention_mask", None)
        ids, own_mask = self._prompt_ids(config, inputs, embeds)
        length = ids.shape[1] if embeds is None else embeds.shape[1]
        if mask is not None:
            own_mask = as_mask(mask, (ids.shape[0], length), device=self.device)
        elif own_mask is None and embeds is None:
            own_mask = mask_of_padding(ids, config.pad_token_id, config.eos_token_ids)
        return Prompt(ids, own_mask, embeds, given)

    def _prompt_ids(self, config: GenerationConfig, inputs: Any, embeds: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Ids (B, L), or (B, 0) beside embeddings, and the mask that their lengths tell."""
        if inputs is not None:
            ids, mask = as_ids(inputs, pad=config.pad_token_id, device=self.device, left=True)
            if embeds is not None and embeds.shape[:2] != ids.shape:
                raise InputError(
                    "inputs_embeds stand for the prompt: with ids, their lengths must agree. Received: "
                    f"inputs_embeds of {tuple(embeds.shape)}, ids of {tuple(ids.shape)}"
                )
            return ids, mask
        if embeds is not None:
            if embeds.dim() != 3 or embeds.shape[1] == 0:
                raise InputError(
                    f"inputs_embeds must be (batch, tokens, width) with a token. Received: {tuple(embeds.shape)}"
                )
            return torch.empty(embeds.shape[0], 0, dtype=torch.long, device=self.device), None
        if config.bos_token_id is None:
            raise InputError("without a prompt, generation needs bos_token_id. Received: neither")
        return torch.full((1, 1), config.bos_token_id, device=self.device), None

    def _encode(
        self, config: GenerationConfig, inputs: Any, given: dict[str, Any]
    ) -> tuple[dict[str, Any], Tensor | None, int]:
        """Run the encoder once; returns the decoder's inputs, the ids of the source, and B."""
        encoded, embeds, mask = (given.pop(n, None) for n in ("encoder_outputs", "inputs_embeds", "attention_mask"))
        if sum(value is not None for value in (inputs, embeds, encoded)) != 1:
            raise InputError(
                "exactly one of input_ids, inputs_embeds and encoder_outputs must be given to a model with an encoder. "
                f"Received: {sum(v is not None for v in (inputs, embeds, encoded))} of them"
            )
        ids = None
        if inputs is not None:
            ids, own_mask = as_ids(inputs, pad=config.pad_token_id, device=self.device, left=False)
            if mask is None and own_mask is None:
                own_mask = mask_of_padding(ids, config.pad_token_id, config.eos_token_ids)
            mask = own_mask if mask is None else mask
        head_mask = given.pop("head_mask", None)
        if encoded is None:
            encoded = self.get_encoder()(
                input_ids=ids,
                attention_mask=mask,
                inputs_embeds=embeds,
                head_mask=head_mask,
                output_attentions=config.output_attentions,
                output_hidden_states=config.output_hidden_states,
                return_dict=True,
            )
        return {"encoder_outputs": encoded, "attention_mask": mask}, ids, encoded[0].shape[0]

    def _decoder_prompt(self, config: GenerationConfig, given: dict[str, Any], batch: int) -> Prompt:
        """The start token, and what the decoder is to begin with behind it."""
        mask = given.pop("decoder_attention_mask", None)
        first = torch.tensor(start_tokens(config, batch=batch), device=self.device)[:, None]
        ids = given.pop("decoder_input_ids", None)
        if ids is None:
            return Prompt(first, extras=given)
        ids, own_mask = as_ids(ids, pad=config.pad_token_id, device=self.device, left=True)
        own_mask = own_mask if mask is None else as_mask(mask, (batch, ids.shape[1]), device=self.device)
        if bool((ids[:, :1] != first).all()):
            ids = torch.cat((first, ids), dim=1)
            own_mask = None if own_mask is None else torch.cat((own_mask[:, :1] | True, own_mask), dim=1)
        return Prompt(ids, own_mask, extras=given)

    def _generate(
        self,
        config: GenerationConfig,
        prompt: Prompt,
        callbacks: Callbacks,
        *,
        encoder: dict[str, Any] | None,
        source: Tensor | None,
        cache: Any = None,
    ) -> Any:
        greatest = greatest_length(config, prompt=prompt.length, limit=self.max_positions())
        least = least_length(config, prompt=prompt.length, greatest=greatest)
        num_ids = prompt.ids.shape[1]
        unseen = prompt.length - num_ids  # tokens of the prompt that are embeddings only
        run = Run(
            stepper=self._make_stepper(config, prompt, encoder, cache, capacity=greatest),
            ids=self._make_room(config, prompt.ids, greatest - unseen),
            length=num_ids,
            processors=make_processors(
                config,
                prompt=num_ids,
                least=least - unseen,
                greatest=greatest - unseen,
                source=source,
                allowed=callbacks.allowed,
                custom=callbacks.processors,
            ),
            criteria=make_criteria(config, tokenizer=callbacks.tokenizer, custom=callbacks.criteria),
            eos=torch.tensor(config.eos_token_ids, device=self.device) if config.eos_token_ids else None,
            pad=filling(config),
            do_sample=config.do_sample,
            generator=callbacks.generator,
            record=_make_record(config, self.config.is_encoder_decoder),
            streamer=callbacks.streamer,
        )
        if run.streamer is not None:
            run.streamer.put(prompt.ids.cpu())
        return self._search(config, run, encoder)

    def _make_stepper(
        self,
        config: GenerationConfig,
        prompt: Prompt,
        encoder: dict[str, Any] | None,
        cache: Any,
        *,
        capacity: int,
    ) -> Stepper:
        prepared = _is_replaced(self)
        if cache is None and config.use_cache and not prepared:
            cache = self.make_generation_cache(config, capacity=capacity)
        flags = {name: True for name in ("output_attentions", "output_hidden_states") if getattr(config, name)}
        return (PreparedStepper if prepared else Stepper)(
            self,
            prompt,
            cache=cache,
            rows=rows_per_prompt(config),
            capacity=capacity,
            use_cache=config.use_cache,
            encoder=encoder,
            outputs=flags,
        )

    @staticmethod
    def _make_room(config: GenerationConfig, ids: Tensor, greatest: int) -> Tensor:
        """Room for all ids of all rows, (rows, greatest length), with the prompts in it."""
        rows = rows_per_prompt(config)
        room = torch.full((ids.shape[0] * rows, greatest), filling(config), device=ids.device)
        room[:, : ids.shape[1]] = ids.repeat_interleave(rows, dim=0)
        return room

    def _search(self, config: GenerationConfig, run: Run, encoder: dict[str, Any] | None) -> Any:
        fields: dict[str, Any] = {}
        if config.num_beams > 1:
            rules = BeamRules(config.num_beams, config.length_penalty, config.early_stopping)
            beams = BeamSearch(run, rules).search(config.num_return_sequences)
            sequences, num_steps = beams.sequences, beams.num_steps
            fields = beam_outputs(beams, with_scores=config.output_scores)
        else:
            sequences, num_steps = search(run)
        if not config.return_dict_in_generate:
            return sequences.clone()
        if encoder is not None and config.output_attentions:
            fields["encoder_attentions"] = encoder["encoder_outputs"].attentions
        if encoder is not None and config.output_hidden_states:
            fields["encoder_hidden_states"] = encoder["encoder_outputs"].hidden_states
        kind = _OUTPUTS[config.num_beams > 1, encoder is not None]
        cache = run.stepper.cache if config.use_cache else None
        return kind(sequences=sequences.clone(), past_key_values=cache, **fields, **run.record.fields(num_steps))


_OUTPUTS: dict[tuple[bool, bool], Any] = {
    (False, False): outputs.GenerateDecoderOnlyOutput,
    (False, True): outputs.GenerateEncoderDecoderOutput,
    (True, False): outputs.GenerateBeamDecoderOnlyOutput,
    (True, True): outputs.GenerateBeamEncoderDecoderOutput,
}


def _is_replaced(model: GenerationMixin) -> bool:
    """True if a tool or a subclass prepares the inputs of `forward`."""
    own = getattr(model.prepare_inputs_for_generation, "__func__", None)
    return own is not GenerationMixin.prepare_inputs_for_generation


def _make_record(config: GenerationConfig, has_encoder: bool) -> outputs.Record:
    wanted = config.return_dict_in_generate
    return outputs.Record(
        scores=wanted and config.output_scores,
        logits=wanted and bool(config.output_logits),
        attentions=wanted and config.output_attentions,
        hidden_states=wanted and config.output_hidden_states,
        has_encoder=has_encoder,
    )


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Put the modules of a model into evaluation mode for a while."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _ending(streamer: BaseStreamer | None) -> Iterator[None]:
    """Tell a streamer about the end, however it comes."""
    try:
        yield
    finally:
        if streamer is not None:
            streamer.end()
