"""Processes that share sequences, and what they compute beside one process: run by `tests/parallel`, prints JSON.

    python worker.py NUMBER CASE ... [NUMBER CASE ...]

A line of each group: so many processes, and what they say of the cases.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from torch import distributed as dist
from torch import multiprocessing

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.parallel import cases
from tests.tolerances import assert_gradients_close, error

import longspan
from longspan.parallel.torch import context_parallel, split_tokens, sum_gradients


def joined(tensor, axis):
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts, dim=axis)


def compare(case):
    """Errors of outputs, loss and gradients of one case, the largest of each."""
    model = case.make()
    model.zero_grad()
    expected = model(**case.inputs)
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    context_parallel(model)
    got = model(**split_tokens(model, case.inputs))
    got.loss.backward()
    sum_gradients(model)
    errors = {"loss": error(got.loss, expected.loss)}
    for name, axis in case.outputs.items():
        whole = got[name] if axis is None else joined(got[name], axis)
        errors[name] = error(whole * case.real(whole, axis), expected[name] * case.real(whole, axis))
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert {name for name in found if found[name] is None} == {name for name in found if gradients[name] is None}
    present = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    try:
        assert_gradients_close({name: found[name] for name in present}, present)
    except AssertionError as problem:
        return {**errors, "gradients": str(problem)}
    return {**errors, "gradients": len(present)}


def run_long(name, tokens=262_144):
    """Loss and gradients over 262,144 tokens, in one process (the first computes them) and in all.

    In float64: in float32, sums over so many tokens differ by more than 1e-5 by their order alone.
    """
    case = cases.long_case(name, tokens)
    model = case.make().double()
    results = {}
    if dist.get_rank() == 0:
        expected = model(**case.inputs).loss
        expected.backward()
        results = {"expected": expected.item()}
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    model.zero_grad()
    context_parallel(model)
    inputs = split_tokens(model, case.inputs)
    loss = model(**inputs).loss
    loss.backward()
    sum_gradients(model)
    if dist.get_rank() == 0:
        found = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
        largest = max(gradient.abs().max() for gradient in found.values())
        results["gradient"] = float(max((found[key] - gradients[key]).abs().max() for key in found) / largest)
    return {**results, "loss": loss.item(), "tokens": inputs["input_ids"].shape[1]}


def kept_bytes(model, inputs):
    """Bytes that a forward pass keeps for the backward pass, parameters aside."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs).loss  # noqa: B018  # what is kept is the question
    return sum(size for size, _ in kept.values())


def run_memory(name, tokens=4096):
    """What one process keeps of a sequence that all share, as a part of what it keeps of all of it."""
    case = cases.long_case(name, tokens, width=32)
    model = case.make()
    whole = kept_bytes(model, case.inputs)
    context_parallel(model)
    return {"part": kept_bytes(model, split_tokens(model, case.inputs)) / whole}


def run_checkpointing(name):
    """As a case, with activations that are computed again in the backward pass."""
    case = cases.CASES[name]
    model = case.make()
    model.gradient_checkpointing_enable()
    return compare(replace(case, make=lambda: model))


def run_ddp(name):
    """DistributedDataParallel over the processes that share a sequence averages gradients: it gets n times the loss."""
    case = cases.CASES[name]
    model = case.make()
    model(**case.inputs).loss.backward()
    expected = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    model = context_parallel(case.make())
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    (wrapped(**split_tokens(model, case.inputs)).loss * dist.get_world_size()).backward()
    assert_gradients_close({key: model.get_parameter(key).grad for key in expected}, expected)
    return {"gradients": len(expected)}


def run_undo(name):
    """A model that shared sequences reads whole ones again."""
    case = cases.CASES[name]
    model = case.make()
    expected = model(**case.inputs).logits
    model = context_parallel(context_parallel(model), undo=True)
    return {"logits": error(model(**case.inputs).logits, expected)}


def run_dropout(name):
    """With dropout, what all processes compute alike stays alike."""
    case = cases.CASES[name]
    model = case.make()
    for module in model.decoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    context_parallel(model)
    torch.manual_seed(dist.get_rank())
    logits = model(**split_tokens(model, case.inputs)).logits
    others = joined(logits[None], 0)
    plain = case.make()(**case.inputs).logits
    spread, moved = (others - others[:1]).abs().max(), (logits - plain).abs().max()
    return {"spread": spread.item(), "moved": moved.item()}


def run_errors():
    """What each process says of calls that cannot be shared; all say the same, or none would wait for the others."""
    longformer, mega = (
        context_parallel(cases.CASES["longformer_fill"].make()),
        cases.CASES["mega_generate_chunks"].make(),
    )
    context_parallel(mega)
    bert = longspan.BertModel(longspan.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    ids, rank = cases.ids(), dist.get_rank()
    late = torch.ones(2, 12)
    late[0, 0] = 0
    batchnorm = context_parallel(cases.make("MegaForMaskedLM", **cases.MEGA, normalization_type="batchnorm")())
    said = {
        "family": cases.message(lambda: context_parallel(bert)),
        "multiple": cases.message(lambda: split_tokens(longformer, {"input_ids": ids[:, :-1]})),
        "first": cases.message(lambda: split_tokens(bert, {"input_ids": ids})),
        "unequal": cases.message(lambda: longformer(ids[:, : 12 - rank])),
        "short": cases.message(lambda: longformer(ids[:, :3])),
        "weights": cases.message(lambda: longformer(ids[:, :12], output_attentions=True)),
        "positions": cases.message(lambda: longformer(torch.cat([ids, ids], 1)[:, :24])),
        "chunks": cases.message(lambda: mega(ids[:, :9])),
        "left": cases.message(lambda: mega(ids[:, :12], attention_mask=late)),
        "cache": cases.message(lambda: mega(ids[:, :12], past_key_values=((),))),
        "keep": cases.message(lambda: mega(ids[:, :12], logits_to_keep=1)),
        "generate": cases.message(lambda: mega.generate(ids[:, :12])),
        "norm": cases.message(lambda: batchnorm(ids[:, :12])),
        "features": cases.message(
            lambda: context_parallel(cases.make("MegaForMaskedLM", **cases.MEGA, use_feature_dropout=True)())(
                ids[:, :12]
            )
        ),
    }
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, said)
    return {**said, "alike": all(other == said for other in everyone)}


def work(rank, size, port, names):
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    results = {}
    for name in names:
        kind, _, case = name.partition(":")
        results[name] = (
            compare(cases.CASES[kind]) if kind in cases.CASES else globals()[f"run_{kind}"](*[case] * bool(case))
        )
    if rank == 0:
        print(json.dumps(results), flush=True)
    dist.barrier()
    os._exit(0)  # PyTorch's threads of a group can end a process by SIGABRT while the interpreter takes it down


if __name__ == "__main__":
    groups: dict[str, list[str]] = {}
    for word in sys.argv[1:]:
        if word.isdigit():
            names = groups[word] = []
        else:
            names.append(word)
    for case in cases.CASES.values():
        case.make()  # imports what the processes need, which they share: there are no threads yet that a fork would end
    if any(name.startswith("checkpointing") for names in groups.values() for name in names):
        importlib.import_module("torch._dynamo")  # else each process does, where it recomputes activations first
    gc.collect()
    gc.freeze()  # a search for garbage in a process would copy every page that it shares
    for size, names in groups.items():
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        arguments = (int(size), port, names or list(cases.CASES))
        multiprocessing.start_processes(work, arguments, nprocs=int(size), start_method="fork")
