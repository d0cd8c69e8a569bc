"""Every PyTorch Longformer class against the reference on the same weights, and each listed difference."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import transformers
from tests.parity.torch_parity import compare_gradients, compare_outputs, randomise
from tests.tolerances import assert_close

import longspan
from longspan.errors import ConfigError, InputError
from longspan.ops.dispatch import recording

SETTINGS = {
    "vocab_size": 97,
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 90,
    "type_vocab_size": 3,
    "num_labels": 5,
    "attention_window": [4, 8, 4],
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CLASSES = (
    "LongformerModel",
    "LongformerForMaskedLM",
    "LongformerForSequenceClassification",
    "LongformerForMultipleChoice",
    "LongformerForTokenClassification",
    "LongformerForQuestionAnswering",
)
ROWS, LENGTH = 4, 27  # above the windows, odd, no multiple of any


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function that gives (our model, reference model) of a class on equal weights, made once each."""
    made = {}

    def make(name, **settings):
        key = (name, *sorted((key, str(value)) for key, value in settings.items()))
        if key not in made:
            own = {"num_labels": 2} if name == "LongformerForQuestionAnswering" else {}
            config = transformers.LongformerConfig(**{**SETTINGS, **own, **settings})
            reference = randomise(getattr(transformers, name)(config))
            directory = tmp_path_factory.mktemp(name)
            reference.save_pretrained(directory)
            made[key] = (getattr(longspan, name).from_pretrained(directory), reference)
        ours, reference = made[key]
        ours.eval().zero_grad()
        reference.eval().zero_grad()
        ours.config.attn_implementation = "auto"
        ours.config.problem_type = reference.config.problem_type = None
        return ours, reference

    return make


def attention_mask(rows=ROWS, length=LENGTH):
    """All real; right padding; left padding behind the first token (heads read it); holes."""
    mask = torch.ones(rows, length, dtype=torch.long)
    if rows > 1:
        mask[1, -(length // 3) :] = 0
    if rows > 3:
        mask[2, 1:7] = 0
        mask[3, 14:17] = 0
    return mask


def global_mask(mask, kind="mixed"):
    """Rows with none, one, and many global tokens, only real ones."""
    chosen = torch.zeros_like(mask)
    if kind in ("one", "mixed"):
        chosen[:, 0] = 1
    if kind == "mixed":
        chosen[0] = 0
        chosen[-1, [0, 3, 4, 19]] = 1
        chosen[1, 5] = 1
    if kind == "all":
        chosen[:] = 1
    return chosen * mask


def token_ids(shape):
    return torch.randint(3, 97, shape)


def with_separators(ids, places):
    """Put the separator at the given places of each row."""
    for row, separators in zip(ids, places, strict=True):
        row[list(separators)] = 2
    return ids


def inputs_of(name):
    """Inputs and labels of a class; labels at padding are ignored."""
    torch.manual_seed(1)
    ids, mask = token_ids((ROWS, LENGTH)), attention_mask()
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.randint(0, 3, ids.shape)}
    if name in ("LongformerForMultipleChoice", "LongformerForQuestionAnswering"):
        with_separators(ids, [(5, 6, 20), (8, 9, 16), (9, 10, 26), (1, 2, 11)])
    else:
        inputs["global_attention_mask"] = global_mask(mask)
    if name in ("LongformerForMaskedLM", "LongformerForTokenClassification"):
        inputs["labels"] = torch.randint(0, 5, ids.shape).masked_fill(mask == 0, -100)
    if name == "LongformerForSequenceClassification":
        inputs["labels"] = torch.tensor([4, 0, 2, 2])
    if name == "LongformerForMultipleChoice":
        inputs = {key: value.view(2, 2, LENGTH) for key, value in inputs.items()} | {"labels": torch.tensor([1, 0])}
    if name == "LongformerForQuestionAnswering":
        inputs["start_positions"] = torch.tensor([3, 0, 99, 8])  # 99 lies outside and does not count
        inputs["end_positions"] = torch.tensor([5, 2, 99, 18])
    return inputs


def comparable(expected, ours, counts, length):
    """The reference's output without what longspan does not return.

    The reference leaves `global_attentions` at their padded length, and puts uniform weights in empty slots.
    """
    expected = type(expected)(**expected)
    if expected.get("global_attentions") is not None:
        slots = torch.arange(int(counts.max())) < counts[:, None]
        expected.global_attentions = tuple(
            layer[:, :, :length] * slots[:, None, None, :] for layer in expected.global_attentions
        )
        for layer in ours.global_attentions:
            assert (layer * ~slots[:, None, None, :] == 0).all()
    return expected


def check(ours, reference, inputs, *, keep, counts):
    """Compare outputs and gradients."""
    output, expected = ours(**inputs), reference(**inputs)
    compare_outputs(output, comparable(expected, output, counts, keep.shape[1]))  # at padding too
    for result in (output, expected):
        loss_of(result, keep).backward()
    compare_gradients(ours, reference)


def loss_of(output, keep):
    """The model's own loss; for the backbone, a function of all real states and pooled states."""
    if "loss" in output:
        return output.loss
    weight = torch.linspace(-1, 1, output.last_hidden_state.shape[-1])
    return (output.last_hidden_state * keep[..., None] * weight).square().sum() + (output.pooler_output * weight).sum()


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_and_gradients_equal_the_reference(pair, name, weights):
    ours, reference = pair(name)
    inputs = inputs_of(name) | {"output_hidden_states": True, "output_attentions": weights}
    inputs["head_mask"] = torch.tensor([[1, 0, 1], [1, 1, 0.5], [0, 1, 1]])
    counts = global_mask(attention_mask()).sum(1)
    if name == "LongformerForQuestionAnswering":
        counts = torch.tensor([5, 8, 3, 1])  # what is real before the first separator
    if name == "LongformerForMultipleChoice":
        counts = torch.tensor([20, 8, 16, 21])  # what is real behind the second
    with recording() as ran:
        check(ours, reference, inputs, keep=attention_mask().bool(), counts=counts)
    assert ran == ["blocked" if weights else "chunked"] * 3


@pytest.mark.parametrize("kind", ["none", "one", "all"])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 65])
def test_every_length_and_number_of_global_tokens(pair, length, kind):
    ours, reference = pair("LongformerModel")
    mask = attention_mask(2, length)
    inputs = {"input_ids": token_ids((2, length)), "attention_mask": mask}
    inputs |= {"global_attention_mask": global_mask(mask, kind), "output_attentions": length % 2 == 1}
    check(ours, reference, inputs, keep=mask.bool(), counts=global_mask(mask, kind).sum(1))


@pytest.mark.parametrize("implementation", ["chunked", "blocked"])
def test_named_implementation_runs(pair, implementation):
    ours, reference = pair("LongformerModel")
    ours.config.attn_implementation = implementation
    inputs = inputs_of("LongformerModel")
    with recording() as ran:
        output = ours(**inputs)
    assert ran == [implementation] * 3
    compare_outputs(output, reference(**inputs), keep=attention_mask().bool())


@pytest.mark.parametrize("head_size", [2, 12])
def test_global_projections_folded_and_plain(pair, head_size, monkeypatch):
    """With as many global tokens as a head has features, projecting all tokens is cheaper, and is what happens."""
    ours, reference = pair("LongformerModel", num_attention_heads=36 // head_size)
    mask = attention_mask()
    inputs = {
        "input_ids": token_ids((ROWS, LENGTH)),
        "attention_mask": mask,
        "global_attention_mask": global_mask(mask),
    }
    attention, called = ours.encoder.layer[0].attention.self, []
    projected = attention._plain_scores  # a hook on the projection would forbid the fold
    monkeypatch.setattr(attention, "_plain_scores", lambda *args: called.append(True) or projected(*args))
    check(ours, reference, inputs, keep=mask.bool(), counts=global_mask(mask).sum(1))
    assert bool(called) == (head_size == 2)


def test_embedded_inputs_positions_and_chunks(pair):
    ours, reference = pair("LongformerModel", chunk_size_feed_forward=8)
    embeds = torch.randn(ROWS, LENGTH, 36)
    keep = attention_mask().bool()
    for extra in ({}, {"position_ids": torch.randint(0, 90, (ROWS, LENGTH))}):
        inputs = {"inputs_embeds": embeds, "attention_mask": attention_mask(), **extra}
        reference_inputs = dict(inputs)
        if not extra:
            # the reference cuts padded inputs into equal chunks only; padding it by hand changes no real state
            padding = 32 - LENGTH
            reference_inputs["inputs_embeds"] = torch.nn.functional.pad(embeds, (0, 0, 0, padding))
            reference_inputs["attention_mask"] = torch.nn.functional.pad(attention_mask(), (0, padding))
        expected = reference(**reference_inputs).last_hidden_state[:, :LENGTH]
        assert_close(ours(**inputs).last_hidden_state[keep], expected[keep])


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", None])
def test_losses_by_problem_type(pair, problem):
    ours, reference = pair("LongformerForSequenceClassification", num_labels=1 if problem == "regression" else 5)
    ours.config.problem_type = reference.config.problem_type = problem
    labels = {
        "regression": torch.randn(ROWS),
        "multi_label_classification": torch.randint(0, 2, (ROWS, 5)).float(),
        None: torch.randint(0, 5, (ROWS,)),
    }[problem]
    ids = token_ids((ROWS, LENGTH))
    compare_outputs(ours(ids, labels=labels), reference(ids, labels=labels))


@pytest.mark.parametrize("name", CLASSES)
def test_saved_files_load_in_the_reference_byte_for_byte(pair, name, tmp_path):
    ours, reference = pair(name)
    ours.save_pretrained(tmp_path)
    back, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == []
    assert info["unexpected_keys"] == []
    expected = reference.state_dict()
    assert back.state_dict().keys() == expected.keys()
    for key, tensor in back.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    assert list(back.config.attention_window) == SETTINGS["attention_window"]


def test_auto_classes(pair, tmp_path):
    for name in CLASSES[1:]:
        pair(name)[0].save_pretrained(tmp_path / name)
        auto = getattr(longspan, name.replace("Longformer", "AutoModel"))
        assert type(auto.from_pretrained(tmp_path / name)) is getattr(longspan, name)
    assert type(longspan.AutoConfig.from_pretrained(tmp_path / name)) is longspan.LongformerConfig
    assert type(longspan.AutoModel.from_pretrained(tmp_path / name)) is longspan.LongformerModel


def test_resized_vocabulary():
    model = longspan.LongformerForMaskedLM(longspan.LongformerConfig(**SETTINGS))
    model.resize_token_embeddings(101)
    assert model.lm_head.decoder.weight is model.longformer.embeddings.word_embeddings.weight
    assert model.lm_head.decoder.bias is model.lm_head.bias
    assert model(torch.full((1, 5), 100)).logits.shape == (1, 5, 101)


def test_tuples_and_defaults_of_the_configuration(pair):
    ours, reference = pair("LongformerForTokenClassification")
    ids, labels = token_ids((2, 9)), torch.randint(0, 5, (2, 9))
    mine = ours(ids, labels=labels, return_dict=False, output_hidden_states=True)
    theirs = reference(ids, labels=labels, return_dict=False, output_hidden_states=True)
    assert isinstance(mine, tuple)
    assert len(mine) == len(theirs)
    assert_close(mine[1], theirs[1])
    ours_config, reference_config = longspan.LongformerConfig(), transformers.LongformerConfig()
    for key in set(inspect.signature(transformers.LongformerConfig).parameters) - {"kwargs"}:
        assert getattr(ours_config, key) == getattr(reference_config, key), key


class TestDifferences:
    """Where longspan differs from the reference on purpose, and inputs that the reference cannot take."""

    @pytest.mark.parametrize("windows", [[6, 10, 2], 512])
    def test_any_even_window_by_the_definition(self, windows):
        config = longspan.LongformerConfig(**{**SETTINGS, "attention_window": windows})
        model = randomise(longspan.LongformerModel(config)).double()
        mask = attention_mask()
        chosen = global_mask(mask)
        layers = [layer.attention.self for layer in model.encoder.layer]
        seen = []
        hooks = [
            layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output[0])))
            for layer in layers
        ]
        with torch.no_grad():
            model(token_ids((ROWS, LENGTH)), attention_mask=mask, global_attention_mask=chosen)
        for hook in hooks:
            hook.remove()
        for index, (layer, (states, context)) in enumerate(zip(layers, seen, strict=True)):
            expected = by_definition(layer, states, config.window_of(index), mask.bool(), chosen.bool())
            assert_close(context[mask.bool()], expected[mask.bool()], "float64")

    def test_cost_follows_the_real_length(self):
        from torch.utils.flop_counter import FlopCounterMode

        config = longspan.LongformerConfig(**{**SETTINGS, "attention_window": 512})
        model = longspan.LongformerModel(config).eval()

        def flops(length):
            with FlopCounterMode(display=False) as counter:
                model(token_ids((1, length)), torch.ones(1, length))
            return counter.get_total_flops()

        assert flops(64) < 64 / 80 * flops(80)  # less than proportional: no padding to 512
        assert flops(8) < flops(64) / 8

    @pytest.mark.parametrize("value", [2, True, 0.5])
    def test_any_nonzero_global_value(self, pair, value):
        ours, reference = pair("LongformerModel")
        ids, chosen = token_ids((2, 11)), torch.zeros(2, 11, dtype=torch.long)
        chosen[:, [0, 7]] = 1
        marked = torch.zeros(2, 11, dtype=torch.tensor(value).dtype)
        marked[:, [0, 7]] = value
        expected = reference(ids, global_attention_mask=chosen)
        compare_outputs(ours(ids, global_attention_mask=marked), expected)
        assert_close(ours(ids, attention_mask=torch.ones(2, 11).bool(), global_attention_mask=marked)[0], expected[0])

    def test_attention_mask_2_is_global(self, pair):
        ours, reference = pair("LongformerModel")
        ids, mask = token_ids((2, 11)), torch.ones(2, 11, dtype=torch.long)
        mask[0, 3] = mask[1, 5] = 2
        mask[1, 8:] = 0
        compare_outputs(ours(ids, attention_mask=mask), reference(ids, attention_mask=mask), keep=mask.bool())

    def test_left_padding(self, pair):
        ours, reference = pair("LongformerForSequenceClassification")
        ids, mask = token_ids((2, 19)), torch.ones(2, 19, dtype=torch.long)
        mask[0, :6] = 0
        ids[0, :6] = 1
        output = ours(ids, attention_mask=mask, output_hidden_states=True)  # the first token is padding: not global
        expected = reference(ids, attention_mask=mask, output_hidden_states=True)
        for mine, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
            assert_close(mine[mask.bool()], theirs[mask.bool()])

    @pytest.mark.parametrize("separators", [[(5,), (3, 9)], [(4, 5, 8, 12), (0,)]])
    def test_question_from_the_first_separator(self, pair, separators):
        ours, _ = pair("LongformerForQuestionAnswering")
        ids = with_separators(token_ids((2, 14)), separators)
        question = torch.arange(14) < torch.tensor([[row[0]] for row in separators])
        assert_close(ours(ids).start_logits, ours(ids, global_attention_mask=question).start_logits)

    def test_question_from_the_segments(self, pair):
        ours, _ = pair("LongformerForQuestionAnswering")
        ids, segments = token_ids((2, 14)), (torch.arange(14) > 4).long().expand(2, 14)
        expected = ours(ids, token_type_ids=segments, global_attention_mask=torch.arange(14).expand(2, 14) < 5)
        assert_close(ours(ids, token_type_ids=segments).end_logits, expected.end_logits)
        embeds = ours.longformer.embeddings.word_embeddings(ids)
        assert_close(ours(inputs_embeds=embeds, token_type_ids=segments).end_logits, expected.end_logits)

    def test_no_question_takes_the_first_token_and_warns(self, pair):
        ours, _ = pair("LongformerForQuestionAnswering")
        ids = with_separators(token_ids((2, 14)), [(5,), ()])
        with pytest.warns(UserWarning, match=r"cannot find a question: no separator.*in 1 of 2 rows"):
            output = ours(ids)
        chosen = torch.zeros(2, 14)
        chosen[0, :5] = chosen[1, 0] = 1
        assert_close(output.start_logits, ours(ids, global_attention_mask=chosen).start_logits)

    def test_no_choice_takes_the_first_token_and_warns(self, pair):
        ours, _ = pair("LongformerForMultipleChoice")
        ids = token_ids((1, 2, 14))
        ids[0, 1, 4:6] = 2
        with pytest.warns(UserWarning, match=r"cannot find a choice: no separator in 1 of 2 rows"):
            output = ours(ids)
        chosen = torch.zeros(1, 2, 14)
        chosen[0, 0, 0] = 1
        chosen[0, 1, 6:] = 1
        chosen[0, 1, 5] = 0
        assert_close(output.logits, ours(ids, global_attention_mask=chosen).logits)

    def test_first_token_is_global_for_embedded_inputs(self, pair):
        ours, _ = pair("LongformerForSequenceClassification")
        embeds, chosen = torch.randn(2, 14, 36), torch.zeros(2, 14)
        chosen[:, 0] = 1
        expected = ours(inputs_embeds=embeds, global_attention_mask=chosen)
        assert_close(ours(inputs_embeds=embeds).logits, expected.logits)

    def test_every_parameter_takes_part_in_training(self, pair):
        ours, _ = pair("LongformerForMaskedLM")
        ours.train()
        ids = token_ids((2, 9))
        ours(ids, labels=ids).loss.backward()  # no global token at all
        missing = {name for name, parameter in ours.named_parameters() if parameter.grad is None}
        assert missing == set()
        assert torch.count_nonzero(ours.longformer.encoder.layer[0].attention.self.key_global.weight.grad) == 0

    def test_distributed_training_without_global_tokens(self, pair, tmp_path):
        ours, _ = pair("LongformerForMaskedLM")
        ours.train()
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
        try:
            model = torch.nn.parallel.DistributedDataParallel(ours)  # refuses a parameter without gradient
            for _ in range(2):
                ids = token_ids((2, 9))
                model(ids, labels=ids).loss.backward()
        finally:
            model = None  # a reducer that holds the group last waits, with the GIL, for threads that want the GIL
            torch.distributed.destroy_process_group()

    def test_rows_of_padding_only(self, pair):
        ours = copy.deepcopy(pair("LongformerModel")[0])
        ids, mask = token_ids((3, 20)), torch.ones(3, 20, dtype=torch.long)
        mask[1] = 0
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            output = ours.to(dtype)(ids, attention_mask=mask)
            output.last_hidden_state.float().square().sum().backward()
            assert torch.isfinite(output.last_hidden_state).all()
            assert all(torch.isfinite(p.grad).all() for p in ours.parameters() if p.grad is not None)


def by_definition(attention, states, window, real, chosen):
    """Longformer's attention of one layer, token by token, (B, S, H)."""
    heads, size = attention.num_attention_heads, attention.attention_head_size

    def project(name, states):
        return getattr(attention, name)(states).unflatten(-1, (heads, size))

    context = torch.zeros_like(states)
    for row in range(states.shape[0]):
        tokens = torch.arange(states.shape[1])
        for i in tokens.tolist():
            suffix = "_global" if chosen[row, i] else ""
            near = (tokens - i).abs() <= window // 2
            seen = real[row] & (near | chosen[row] | bool(chosen[row, i]))
            query = project(f"query{suffix}", states[row, i])  # (A, D)
            keys, values = (project(f"{name}{suffix}", states[row, seen]) for name in ("key", "value"))
            weights = torch.softmax(torch.einsum("ad,jad->aj", query, keys) / size**0.5, dim=-1)
            context[row, i] = torch.einsum("aj,jad->ad", weights, values).flatten()
    return context


class TestHalfPrecision:
    # three layers of roundings of states of magnitude 5: errors grow beyond one rounding of the table
    TOLERANCE = {torch.bfloat16: 6e-2, torch.float16: 8e-3}  # noqa: RUF012

    @pytest.mark.parametrize("weights", [True, False])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_close_to_single_precision_without_nan(self, pair, dtype, weights):
        ours, reference = pair("LongformerModel")
        half = copy.deepcopy(ours).to(dtype)
        inputs = inputs_of("LongformerModel")
        with torch.no_grad():
            output = half(**inputs, output_attentions=weights).last_hidden_state
            expected = reference(**inputs).last_hidden_state
        assert output.dtype == dtype
        assert torch.isfinite(output).all()
        keep = inputs["attention_mask"].bool()
        difference = (output.float() - expected)[keep].abs().max() / expected[keep].abs().max()
        assert difference < self.TOLERANCE[dtype]


class TestTraining:
    def test_gradient_checkpointing_changes_nothing(self, pair):
        ours, reference = pair("LongformerModel")
        ours.gradient_checkpointing_enable()
        ours.train()
        reference.train()
        mask = attention_mask()
        inputs = inputs_of("LongformerModel")
        try:
            check(ours, reference, inputs, keep=mask.bool(), counts=global_mask(mask).sum(1))
        finally:
            ours.gradient_checkpointing_disable()

    def test_dropout_of_attention_weights(self):
        config = longspan.LongformerConfig(**{**SETTINGS, "attention_probs_dropout_prob": 0.5})
        model = longspan.LongformerModel(config)
        ids = token_ids((1, 20))
        chosen = torch.zeros_like(ids)
        chosen[:, 0] = 1
        model.train()
        assert not torch.equal(model(ids)[0], model(ids)[0])
        assert not torch.equal(model(ids, global_attention_mask=chosen)[0], model(ids, global_attention_mask=chosen)[0])
        model.eval()
        assert torch.equal(model(ids)[0], model(ids)[0])

    def test_pruned_heads_are_those_that_a_head_mask_removes(self, tmp_path):
        model = randomise(longspan.LongformerModel(longspan.LongformerConfig(**SETTINGS)))
        inputs = inputs_of("LongformerModel")
        keep = inputs["attention_mask"].bool()
        head_mask = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 1]])
        expected = model(**inputs, head_mask=head_mask).last_hidden_state
        model.prune_heads({0: [1], 2: [0, 1]})
        assert model.encoder.layer[2].attention.self.key_global.out_features == 12
        for arguments in ({}, {"head_mask": head_mask}):  # a mask counts heads as they were
            assert_close(model(**inputs, **arguments).last_hidden_state[keep], expected[keep])
        model.save_pretrained(tmp_path)
        again = longspan.LongformerModel.from_pretrained(tmp_path)
        assert_close(again(**inputs).last_hidden_state[keep], expected[keep])


class TestTracing:
    @staticmethod
    def inputs(length, count):
        mask = attention_mask(2, length)
        chosen = torch.zeros_like(mask)
        chosen[0, :count] = 1
        return token_ids((2, length)), mask, chosen

    def test_one_graph_for_all_lengths_and_global_tokens(self, pair):
        from torch._dynamo.testing import CompileCounter

        ours, _ = pair("LongformerModel", num_hidden_layers=1, attention_window=[4], num_global_slots=9)
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend=counter)
        with torch.no_grad():
            for length, count in ((27, 2), (64, 0), (65, 9), (8, 1), (80, 5)):
                ids, mask, chosen = self.inputs(length, count)
                output = compiled(ids, attention_mask=mask, global_attention_mask=chosen)
                expected = ours(ids, attention_mask=mask, global_attention_mask=chosen)
                assert_close(output.last_hidden_state[mask.bool()], expected.last_hidden_state[mask.bool()])
        assert counter.frame_count == 1

    def test_default_backend_trains(self, pair):
        ours, reference = pair("LongformerModel", num_hidden_layers=1, attention_window=[4])
        torch._dynamo.reset()
        mask = attention_mask()
        inputs = {"input_ids": token_ids((ROWS, LENGTH)), "attention_mask": mask}
        inputs["global_attention_mask"] = global_mask(mask)
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        for model in (compiled, reference):
            loss_of(model(**inputs), mask.bool()).backward()
        compare_gradients(ours, reference)

    def test_more_global_tokens_than_slots(self, pair):
        ours, _ = pair("LongformerModel", num_hidden_layers=1, attention_window=[4], num_global_slots=3)
        torch._dynamo.reset()
        compiled = torch.compile(ours, fullgraph=True, backend="eager")
        ids, mask, chosen = self.inputs(27, 4)
        message = r"takes at most config.num_global_slots=3 global tokens per row"
        with pytest.raises(InputError, match=message + r". Received: 4"):
            compiled(ids, attention_mask=mask, global_attention_mask=chosen)
        arguments = {"attention_mask": mask, "global_attention_mask": chosen}
        program = torch.export.export(ours, (ids,), arguments).module()
        with pytest.raises(RuntimeError, match=message):
            program(ids, **arguments)

    def test_export_with_a_dynamic_length(self, pair):
        ours, _ = pair("LongformerForSequenceClassification", num_global_slots=4)
        batch, tokens = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("tokens", min=2, max=88)
        axes = {0: batch, 1: tokens}
        shapes = {"input_ids": axes, "attention_mask": axes, "global_attention_mask": axes}
        ids, mask, chosen = self.inputs(27, 2)
        arguments = {"input_ids": ids, "attention_mask": mask, "global_attention_mask": chosen}
        program = torch.export.export(ours, (), arguments, dynamic_shapes=shapes).module()
        with torch.no_grad():
            for length, count in ((2, 0), (64, 3), (65, 1), (88, 4)):
                ids, mask, chosen = self.inputs(length, count)
                arguments = {"input_ids": ids, "attention_mask": mask, "global_attention_mask": chosen}
                assert_close(program(**arguments).logits, ours(**arguments).logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_window": 7}, "attention_window must be even and positive. Received: attention_window=7, layer=0"),
        ({"attention_window": [4, 0, 2]}, "must be even and positive. Received: attention_window=0, layer=1"),
        ({"attention_window": [4, 4, -2]}, "must be even and positive. Received: attention_window=-2, layer=2"),
        ({"attention_window": [4, 4]}, r"attention_window must be one number or one per layer. Received: .*\[4, 4\]"),
        ({"attention_window": 4.0}, "attention_window must be int or list. Received: attention_window=4.0"),
        ({"hidden_size": 35}, "num_attention_heads must divide hidden_size. Received: hidden_size=35"),
        ({"max_position_embeddings": 2}, r"max_position_embeddings must exceed pad_token_id \+ 1"),
        ({"pad_token_id": None}, "pad_token_id must be set"),
        ({"num_global_slots": 0}, "num_global_slots must be positive. Received: num_global_slots=0"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must lie in \[0, 1\)"),
    ],
)
def test_clear_configuration_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        longspan.LongformerConfig(**{**SETTINGS, **settings})


def test_a_global_token_at_padding_is_padding(pair):
    ours, reference = pair("LongformerModel")
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    inputs = {"input_ids": token_ids((2, 9)), "attention_mask": mask, "global_attention_mask": torch.ones(2, 9).long()}
    with torch.no_grad():
        actual, expected = ours(**inputs).last_hidden_state, reference(**inputs).last_hidden_state
    assert_close(actual[mask.bool()], expected[mask.bool()])
    # the reference gives such a token of its own accord what padding gets
    inputs["global_attention_mask"] = mask
    assert_close(ours(**inputs).last_hidden_state[mask.bool()], actual[mask.bool()])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"attention_mask": torch.ones(2, 8)}, r"attention_mask must have the shape \(batch, tokens\) = \(2, 9\)"),
        ({"global_attention_mask": torch.ones(1, 9)}, r"global_attention_mask must have .*Received: \(1, 9\)"),
        ({"input_ids": torch.full((2, 9), 97)}, r"input_ids must lie in \[0, vocab_size=97\). Received: 97"),
        ({"token_type_ids": torch.full((2, 9), 3)}, r"token_type_ids must lie in \[0, type_vocab_size=3\)"),
        ({"token_type_ids": torch.zeros(9)}, r"token_type_ids must have the shape"),
        ({"position_ids": torch.full((2, 9), 90)}, r"position_ids must lie in \[0, max_position_embeddings=90\)"),
        ({"position_ids": torch.zeros(2, 8).long()}, r"position_ids must have the shape"),
        ({"input_ids": torch.full((1, 89), 5)}, "pad_token_id - 1=88 tokens. Received: 89 tokens"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(1, 89, 36)}, "pad_token_id - 1=88 tokens. Received: 89"),
        ({"inputs_embeds": torch.zeros(2, 9, 36)}, "exactly one of input_ids and inputs_embeds"),
        ({"head_mask": torch.ones(2)}, r"head_mask must have the shape \(heads,\) = \(3,\)"),
    ],
)
def test_clear_input_errors(pair, inputs, message):
    ours, _ = pair("LongformerModel")
    with pytest.raises(InputError, match=message):
        ours(**{"input_ids": torch.full((2, 9), 5), **inputs})


def test_clear_implementation_errors(pair):
    ours, _ = pair("LongformerModel")
    ours.config.attn_implementation = "chunked"
    with pytest.raises(InputError, match=r"'chunked' cannot serve.*attention weights are returned by 'blocked' only"):
        ours(token_ids((1, 9)), output_attentions=True)
    with pytest.raises(InputError, match="attn_implementation must be one of auto, flex, chunked, blocked"):
        longspan.LongformerModel(longspan.LongformerConfig(**SETTINGS, attn_implementation="fast"))


def test_padded_rows_longer_than_the_positions_are_fine_if_their_tokens_fit(pair):
    ours, reference = pair("LongformerModel")
    ids = torch.full((1, 95), 1)
    ids[0, :20] = 5
    mask = (ids != 1).long()
    assert_close(ours(ids, attention_mask=mask)[0][:, :20], reference(ids, attention_mask=mask)[0][:, :20])
