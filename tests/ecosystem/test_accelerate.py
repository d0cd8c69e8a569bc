"""accelerate: maps of devices, offloading, generation under it, saving; two processes with DDP and FSDP2."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from accelerate import (
    Accelerator,
    cpu_offload,
    disk_offload,
    dispatch_model,
    infer_auto_device_map,
    init_empty_weights,
    load_checkpoint_and_dispatch,
)
from tests.ecosystem.models import IDS, LANGUAGE_MODELS, batch, make
from tests.processes import run_group
from tests.tolerances import assert_close

pytestmark = [pytest.mark.ecosystem, pytest.mark.filterwarnings("ignore")]  # accelerate warns about CPUs
#: a model of each family, and further heads of theirs
NAMES = [
    *LANGUAGE_MODELS.values(),
    *(
        pytest.param(name, marks=pytest.mark.wide)
        for name in ("LongformerForSequenceClassification", "MegaForCausalLM", "BertLMHeadModel")
    ),
]


def results(model, name):
    """The loss, and what it generates."""
    model.eval()
    with torch.no_grad():
        loss = model(**batch(name)).loss
    ids = model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False) if model.can_generate() else IDS
    return loss, ids


def check(model, name):
    loss, ids = results(model, name)
    expected, expected_ids = results(make(name), name)
    assert_close(loss, expected)
    assert torch.equal(ids, expected_ids)


def half_on_disk(model):
    """A map with layers and leaves on the CPU and on the disk by turns, tied weights together."""
    tied = {key.rpartition(".")[0] for pair in (model._tied_weights_keys or {}).items() for key in pair}
    places = {}

    def walk(module, prefix):
        for name, child in module.named_children():
            path = prefix + name
            if type(child).__name__ in model._no_split_modules or not list(child.children()):
                places[path] = "disk" if len(places) % 2 and path not in tied else "cpu"
            else:
                walk(child, path + ".")
        places.update({prefix + name: "cpu" for name, _ in module.named_parameters(recurse=False)})

    walk(model, "")
    return places


@pytest.mark.parametrize("name", NAMES)
def test_offloading(name, tmp_path):
    check(cpu_offload(make(name), execution_device="cpu"), name)
    check(disk_offload(make(name), tmp_path / "a", execution_device="cpu"), name)
    model = dispatch_model(make(name), half_on_disk(make(name)), offload_dir=tmp_path / "b", force_hooks=True)
    check(model, name)
    model.save_pretrained(tmp_path / "saved")
    check(type(model).from_pretrained(tmp_path / "saved"), name)


@pytest.mark.parametrize("name", NAMES)
def test_maps_of_devices(name, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path)
    size = model.get_memory_footprint()
    assert infer_auto_device_map(model, {0: size // 2, "cpu": 10 * size}, model._no_split_modules)
    for places in ("auto", half_on_disk(model)):
        with init_empty_weights():
            empty = type(model)(model.config)
        empty.tie_weights()
        folder = tmp_path / "offload"
        check(load_checkpoint_and_dispatch(empty, str(tmp_path), device_map=places, offload_folder=folder), name)
    for places in ("auto", "sequential", "cpu", {"": "cpu"}, half_on_disk(model)):
        loaded = type(model).from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "more")
        check(loaded, name)
        assert set(loaded.hf_device_map.values()) <= {"cpu", "disk"}


@pytest.mark.parametrize("name", ["BertForMaskedLM", "LongT5ForConditionalGeneration", "DiffLlamaForCausalLM"])
def test_states_of_a_run(name, tmp_path):
    accelerator = Accelerator(cpu=True)
    model = make(name)
    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    accelerator.backward(prepared(**batch(name)).loss)
    optimizer.step()
    accelerator.save_state(tmp_path / "state")
    accelerator.save_model(prepared, tmp_path / "model")
    accelerator.unwrap_model(prepared).save_pretrained(
        tmp_path / "own",
        is_main_process=accelerator.is_main_process,
        save_function=accelerator.save,
        state_dict=accelerator.get_state_dict(prepared),
    )
    expected = results(prepared, name)[0]
    optimizer.step()
    accelerator.load_state(tmp_path / "state")
    assert_close(results(prepared, name)[0], expected)
    assert_close(results(type(model).from_pretrained(tmp_path / "own"), name)[0], expected)


def test_two_processes_with_ddp_and_fsdp2():
    worker = Path(__file__).with_name("parallel_worker.py")
    done = run_group([sys.executable, str(worker)], timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.count("equal") == 10
    assert done.stdout.count("generates the same") == 4
