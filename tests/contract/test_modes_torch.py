"""Every family under autocast, with NaN at padding, sharded, traced and exported."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch
from tests.contract.models_torch import TORCH, make
from tests.tolerances import assert_close

import longspan
from longspan.errors import InputError

MODELS = (
    "BertLMHeadModel",
    "BertForMaskedLM",
    "LongformerForMaskedLM",
    "LongT5ForConditionalGeneration",
    "DiffLlamaForCausalLM",
    "MegaForCausalLM",
    "MegaForMaskedLM",
)


def small(name):
    """A model with weights so small that rounding stays as small, and inputs."""
    model, inputs = make(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.25)
    return model, inputs


CASES = [(name, "float16") for name in TORCH] + [(name, "bfloat16") for name in MODELS]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_autocast(name, dtype):
    """Forward, `generate` and a step of training with scaled gradients."""
    model, inputs = small(name)
    with torch.no_grad():
        expected = model(**inputs)[0]
    with torch.autocast("cpu", getattr(torch, dtype)):
        scores = model(**inputs)[0]
        if model.can_generate():
            assert len(model.generate(inputs["input_ids"], max_new_tokens=2)) == 2
    assert_close(scores, expected, dtype)
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=256.0), torch.optim.SGD(model.parameters(), lr=0.1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scaler.scale(scores.float().square().mean()).backward()
    scaler.step(optimizer)  # not made if a gradient is infinite or NaN
    scaler.update()
    assert scaler.get_scale() == 256.0
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert len(changed) > 10
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_what_lies_at_padding_reaches_no_real_token(name, value):
    model, inputs = make(name)
    ids = inputs.pop("input_ids")
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    inputs |= {"inputs_embeds": model.get_input_embeddings()(ids), "attention_mask": mask}
    expected = model(**inputs).logits
    inputs["inputs_embeds"][1, 30:] = value
    assert_close(model(**inputs).logits[:, :30], expected[:, :30])
    if "decoder_input_ids" in inputs:
        target = inputs.pop("decoder_input_ids")
        inputs |= {"decoder_inputs_embeds": model.get_input_embeddings()(target)}
        inputs |= {"decoder_attention_mask": mask[:, : target.shape[1]]}
        inputs["decoder_inputs_embeds"][1, 30:] = value
        assert_close(model(**inputs).logits[:, :30], expected[:, :30])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_jit_trace(name):
    model, inputs = make(name)

    more = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *values):
            return self.model(**dict(zip(inputs, values, strict=True)), **more).logits

    graph = torch.jit.trace(Logits(), tuple(inputs.values()), check_trace=False)
    assert_close(graph(*inputs.values()), model(**inputs).logits)


def test_an_exported_diffllama_holds_operators_of_pytorch_alone():
    model, inputs = make("DiffLlamaForCausalLM")
    program = torch.export.export(model, (), {**inputs, "use_cache": False, "output_hidden_states": False})
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert len(names) > 5
    assert not [name for name in names if name.startswith("longspan")]


@pytest.mark.filterwarnings("ignore")
def test_fully_sharded(tmp_path):
    """FSDP2 gathers the weights of a block when the block is called."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        for name in ("LongT5ForConditionalGeneration", "LongformerForMaskedLM"):
            model, inputs = make(name)
            expected = model(**inputs).logits.detach()
            layers = [m for m in model.modules() if type(m).__name__.endswith(("Block", "LongformerLayer"))]
            assert layers
            for layer in layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            logits = model(**inputs).logits
            assert_close(logits, expected)
            logits.square().mean().backward()
            assert all(isinstance(p.grad, DTensor) for p in model.parameters() if p.grad is not None)
    finally:
        torch.distributed.destroy_process_group()


ALONE = """
import sys
import importlib.abc
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith("longspan.fast"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import torch
import longspan
from tests.contract.test_modes_torch import MODELS
from tests.contract.models_torch import make
torch.set_num_threads(1)
with torch.no_grad():
    for name in MODELS:
        model, inputs = make(name)
        with longspan.prepacked_weights(model):
            logits = model(**inputs).logits
        tokens = model.generate(inputs["input_ids"], max_new_tokens=3).tolist() if model.can_generate() else None
        torch.save((logits, tokens), f"{sys.argv[1]}/{name}")
assert not [name for name in sys.modules if name.startswith("longspan.fast")]
"""


def test_a_library_without_its_fast_paths(tmp_path):
    """The package may be deleted: the rest computes the same."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", ALONE, str(tmp_path)], check=True, timeout=300)
    for name in MODELS:
        model, inputs = make(name)
        logits, tokens = torch.load(tmp_path / name)
        with torch.no_grad():
            assert_close(model(**inputs).logits, logits)
        if tokens is not None:
            assert model.generate(inputs["input_ids"], max_new_tokens=3).tolist() == tokens
    model.config.attn_implementation = "tiled"
    with longspan.plain(), pytest.raises(InputError, match="switched off"):
        model(**inputs)
