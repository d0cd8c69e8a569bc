"""Activations, losses, masks, packing, casting and outputs of the Flax half."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.core import freeze
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.grid import grid
from tests.tolerances import assert_close

import longspan
from longspan.errors import CheckpointError, ConfigError, InputError
from longspan.nn.flax import activations, casting, checks, losses, masks, outputs, packing
from longspan.nn.torch import activations as torch_activations
from longspan.nn.torch import losses as torch_losses
from longspan.shapes import check_key_mask

MODULES = [
    module.name
    for module in pkgutil.walk_packages(longspan.__path__, "longspan.")
    if ".flax" in module.name and "pipelines" not in module.name
]


@pytest.mark.parametrize("name", grid(MODULES, wide=["longspan.models.roberta.flax_model"]))  # BERT's classes by name
def test_examples_give_what_they_show(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


class TestActivations:
    def test_names_are_those_of_pytorch(self):
        assert activations.ACTIVATIONS.keys() == torch_activations.ACTIVATIONS.keys()

    @pytest.mark.parametrize("name", sorted(activations.ACTIVATIONS))
    def test_values_and_derivatives_equal_pytorch(self, name):
        x = np.linspace(-7, 11, 257, dtype=np.float32)
        theirs = torch.from_numpy(x).requires_grad_()
        expected = torch_activations.get_activation(name)(theirs)
        expected.sum().backward()
        ours = activations.get_activation(name)
        assert_close(ours(jnp.asarray(x)), expected)
        assert_close(jax.vmap(jax.grad(ours))(jnp.asarray(x)), theirs.grad)

    def test_unknown_names_raise_and_functions_pass(self):
        assert activations.get_activation(jnp.tanh) is jnp.tanh
        with pytest.raises(ConfigError, match="an activation must be one of gelu, .*Received: 'gulu'"):
            activations.get_activation("gulu")


class TestLosses:
    """Values equal PyTorch's in `tests/parity/test_bert_flax.py`; here the kinds of problems, and bad labels."""

    @pytest.mark.parametrize(
        ("num_labels", "kind", "labels"),
        [
            (1, None, np.array([0.5, -1.0, 2.0], np.float32)),
            (4, "regression", np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)),
            (4, None, np.array([3, 0, 1])),
            (4, None, np.eye(4, dtype=np.float32)[[1, 2, 1]]),
            (4, "multi_label_classification", np.eye(4, dtype=np.int64)[[1, 2, 1]]),
        ],
    )
    def test_sequence_classification_equals_pytorch(self, num_labels, kind, labels):
        config = longspan.BertConfig(num_labels=num_labels, problem_type=kind)
        logits = np.random.default_rng(0).normal(size=(3, num_labels)).astype(np.float32) * 30
        ours = losses.sequence_classification_loss(config, jnp.asarray(logits), labels)
        theirs = torch_losses.sequence_classification_loss(config, torch.from_numpy(logits), torch.from_numpy(labels))
        assert ours.shape == ()
        assert_close(ours, theirs)

    def test_losses_run_under_jit(self):
        logits, labels = jnp.ones((2, 3, 5)), jnp.array([[1, -100, 4], [0, 2, -100]])
        assert_close(jax.jit(losses.cross_entropy)(logits, labels), np.log(5.0))
        assert_close(jax.jit(losses.causal_lm_loss)(logits, labels), np.log(5.0))

    def test_positions_outside_do_not_count(self):
        start, end = jnp.zeros((2, 4)), jnp.zeros((2, 4))
        loss = losses.question_answering_loss(start, end, np.array([[1], [9]]), np.array([3, 4]))
        assert_close(loss, np.log(4.0))

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.array([1, 5]), r"labels must lie in \[0, 5\) or be -100 \(ignored\). Received: 5 at position \(1,\)"),
            (jnp.array([-1, 0]), r"labels must lie in .*Received: -1 at position \(0,\)"),
            (np.array([1, 2, 3]), r"labels must have the shape .* = \(2,\). Received: \(3,\)"),
        ],
    )
    def test_bad_labels(self, labels, message):
        with pytest.raises(InputError, match=message):
            losses.cross_entropy(jnp.zeros((2, 5)), labels)

    def test_bad_shapes(self):
        config = SimpleNamespace(num_labels=4, problem_type="multi_label_classification")
        with pytest.raises(InputError, match=r"labels must have the shape \(batch, num_labels\) = \(2, 4\)"):
            losses.sequence_classification_loss(config, jnp.zeros((2, 4)), np.zeros((2, 3)))
        with pytest.raises(InputError, match=r"start_positions and end_positions must have the shape \(batch,\)"):
            losses.question_answering_loss(jnp.zeros((2, 4)), jnp.zeros((2, 4)), np.zeros(3, int), np.zeros(2, int))


class TestMasks:
    def test_segments_see_their_own_tokens(self):
        mask = masks.segment_mask(jnp.array([[1, 1, 2, 0]]))[0, 0]
        expected = np.zeros((4, 4), bool)
        expected[:2, :2] = expected[2, 2] = True
        np.testing.assert_array_equal(mask, expected)

    def test_causal_masks_start_at_the_given_position(self):
        np.testing.assert_array_equal(masks.causal_mask(jnp.array([2, 3]), 5)[0, 0], np.tri(5, dtype=bool)[2:4])

    @pytest.mark.parametrize("shape", [(3, 4), (2, 5), (4,), (2, 1, 1, 1, 4)])
    def test_shapes_that_do_not_fit(self, shape):
        with pytest.raises(InputError, match=r"mask must have the shape \(batch, keys\) = \(2, 4\), or \(batch, quer"):
            check_key_mask(np.ones(shape), batch=2, num_keys=4, name="mask")


class TestPacking:
    @given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=9), st.sampled_from([1, 40]))
    @settings(max_examples=20, deadline=None)
    def test_every_real_token_has_one_place(self, rows, stretch):
        mask = np.repeat(np.array(rows), stretch, axis=1)
        plan = packing.plan_packing(mask)
        num_rows, length = plan.indices.shape
        assert length % 64 == 0
        assert (plan.segments > 0).sum() == mask.sum()
        ids = np.arange(1, mask.size + 1).reshape(mask.shape)
        packed = np.asarray(plan.pack(jnp.asarray(ids)))
        back = plan.unpack(jnp.asarray(packed, jnp.float32)[..., None])[..., 0]
        np.testing.assert_array_equal(back, ids * mask)
        for row in range(num_rows):  # the tokens of a segment are one sequence, in order
            for segment in set(plan.segments[row]) - {0}:
                tokens = packed[row][plan.segments[row] == segment]
                sequence = (tokens[0] - 1) // mask.shape[1]
                np.testing.assert_array_equal(tokens, ids[sequence][mask[sequence]])

    def test_rows_come_in_few_numbers(self):
        assert [packing._rounded_rows(n) for n in (0, 1, 2, 3, 4, 5, 6, 7, 9, 13, 17)] == [
            1, 1, 2, 3, 4, 6, 6, 8, 12, 16, 24,
        ]  # fmt: skip

    def test_the_measured_batch_takes_half_the_positions(self):
        lengths = (512, 400, 300, 220, 150, 100, 64, 32)
        mask = np.arange(512) < np.array(lengths)[:, None]
        assert packing.packed_size(packing.plan_packing(mask)) == 4 * 512


class TestCasting:
    PARAMS = {"a": {"kernel": jnp.ones((2, 3)), "steps": jnp.arange(3)}, "b": {"scale": jnp.ones(3)}}  # noqa: RUF012

    def test_integers_stay(self):
        cast = casting.cast_floating(freeze(self.PARAMS), jnp.float16)
        assert type(cast) is dict
        assert [str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(cast)] == ["float16", "int32", "float16"]

    def test_masks_choose(self):
        mask = {"a": {"kernel": True, "steps": True}, "b": {"scale": False}}
        cast = casting.cast_floating(self.PARAMS, jnp.bfloat16, mask)
        assert [str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(cast)] == ["bfloat16", "int32", "float32"]

    def test_masks_must_have_the_structure(self):
        with pytest.raises(InputError, match="mask must have the structure of params. Received: one that differs in b"):
            casting.cast_floating(self.PARAMS, jnp.bfloat16, {"a": {"kernel": True, "steps": True}})


class TestOutputs:
    def test_outputs_are_pytrees_of_their_present_fields(self):
        output = outputs.FlaxMaskedLMOutput(logits=jnp.ones(2), attentions=(jnp.zeros(1), jnp.ones(1)))
        doubled = jax.tree_util.tree_map(lambda leaf: leaf * 2, output)
        assert type(doubled) is outputs.FlaxMaskedLMOutput
        assert doubled.hidden_states is None
        assert list(doubled) == ["logits", "attentions"]
        assert float(doubled[1][1][0]) == 2
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(output)]
        assert paths == [".logits", ".attentions[0]", ".attentions[1]"]


def test_values_are_looked_at_only_where_that_is_cheap():
    assert checks.values_visible(np.ones(2))
    assert checks.values_visible(jnp.ones(2))
    seen = []
    jax.jit(lambda x: seen.append(checks.values_visible(x)))(jnp.ones(2))
    assert seen == [False]


def test_leaves_without_a_rule_raise():
    from longspan.checkpoints.flax import walk

    tree = {"conv": {"kernel": np.ones((2, 3, 4))}}
    with pytest.raises(CheckpointError, match="must be a kernel with 2 axes .*Received: conv/kernel with 3 axes"):
        walk(tree)
    with pytest.raises(CheckpointError, match="Received: layer/lambda_q1 with 1 axes"):
        walk({"layer": {"lambda_q1": np.ones(3)}})
    assert walk({"layer": {"lambda_q1": np.ones(3)}}, raw={"lambda_q1"})["layer.lambda_q1"].shape == (3,)
