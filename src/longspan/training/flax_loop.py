"""The loop in JAX: optax steps, orbax saves, and a mesh shares each forward pass among devices.

A forward pass is divided along its samples, and parameters are on all devices: what these exchange follows from that.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from longspan.checkpoints.flax import flatten, unflatten
from longspan.errors import InputError
from longspan.training.backends.flax import Settings, as_tree, loss_of, settings_of
from longspan.training.batches import Step, rate_factor
from longspan.training.flax_adapters import Tree, merge, split
from longspan.training.options import TrainOptions
from longspan.training.run_folder import Position
from longspan.training.run_loop import RunLoop
from longspan.training.runs import Prepared


def make_optimizer(options: TrainOptions, num_steps: int) -> optax.GradientTransformation:
    """AdamW on clipped gradients; biases and norms, which have one axis, do not decay."""

    def rate(step: Any) -> Any:
        return options.rate * rate_factor(step, num_steps, options.warmup, least=jnp.minimum)

    def decays(params: Tree) -> Tree:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    adamw = optax.adamw(rate, weight_decay=options.weight_decay, mask=decays)
    return optax.chain(optax.clip_by_global_norm(options.max_grad_norm), adamw)


class FlaxLoop(RunLoop):
    """One run in JAX; arguments as of `RunBase`.

    Attributes:
        params: What is trained: the parameters of the model, or with LoRA what `flax_adapters.split` gives.
        moments: State of the optimizer.

    Raises:
        InputError: there are fewer devices, or the model has running statistics, which these steps do not move.
    """

    def __init__(self, prepared: Prepared, *, show_progress: bool) -> None:
        super().__init__(prepared, show_progress=show_progress)
        model = self.task.model
        if model.batch_stats:
            raise InputError(
                "A model with batch normalisation needs framework='torch'. Received: framework='flax' with running "
                f"statistics in {', '.join(model.batch_stats)}"
            )
        mesh = Mesh(np.array(_devices(self.options)), ("data",))
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._by_rows = NamedSharding(mesh, PartitionSpec("data"))
        self._key = jax.random.PRNGKey(self.options.seed)
        self._optimizer = make_optimizer(self.options, self.num_steps)
        self._make_programs()
        no_others: Tree = {}
        lora = self.options.lora
        trained, frozen = split(model, lora, self._key) if lora else (model.params, no_others)
        self._frozen: Tree = jax.device_put(frozen, self._everywhere)
        self.params: Tree = jax.device_put(trained, self._everywhere, may_alias=False)
        self.moments: Tree = jax.jit(self._optimizer.init, out_shardings=self._everywhere)(self.params)

    def _make_programs(self) -> None:
        everywhere = self._everywhere
        self._merge = jax.jit(merge, out_shardings=everywhere) if self.options.lora else lambda frozen, trained: trained

        @jax.value_and_grad
        def gradient(params: Tree, frozen: Tree, batch: Tree, key: Any, settings: Settings) -> Any:
            return loss_of(self.task, self._merge(frozen, params), batch, key, settings=settings)

        def add(
            summed: Tree, params: Tree, frozen: Tree, batch: Tree, key: Any, scale: Any, *, settings: Settings
        ) -> Tree:
            loss, gradients = gradient(params, frozen, batch, key, settings)
            return jax.tree.map(lambda total, value: total + scale * value, summed, (loss, gradients))

        def update(params: Tree, moments: Tree, gradients: Tree) -> tuple[Tree, Tree]:
            updates, moments = self._optimizer.update(gradients, moments, params)
            return optax.apply_updates(params, updates), moments

        self._add = jax.jit(add, static_argnames="settings", donate_argnums=0, out_shardings=everywhere)
        self._update = jax.jit(update, donate_argnums=(0, 1), out_shardings=everywhere)
        self._zeros = jax.jit(
            lambda params: (jnp.float32(0), jax.tree.map(jnp.zeros_like, params)), out_shardings=everywhere
        )

    # Steps

    def train(self, steps: list[Step]) -> None:
        """Steps of an epoch, up to its end or that of the run."""
        for step in steps:
            loss, gradients = self.accumulate(step)
            self.params, self.moments = self._update(self.params, self.moments, gradients)
            self.after_step(loss)
            if self.position.done:
                return

    def accumulate(self, step: Step, *, train: bool = True) -> tuple[float, Tree]:
        """The loss of a step and its gradients; `train=False` drops nothing."""
        key = jax.random.fold_in(self._key, self.position.step)
        scale = np.float32(1 / self.weight(step))
        summed = self._zeros(self.params)
        for number, indices in enumerate(step.passes):
            batch, settings = self.batch(indices)
            of_pass = jax.random.fold_in(key, number) if train else None
            summed = self._add(summed, self.params, self._frozen, batch, of_pass, scale, settings=settings)
        loss, gradients = summed
        return float(loss), gradients

    def batch(self, indices: Any) -> tuple[Tree, Settings]:
        """Samples of a forward pass, shared among the devices, and the settings of its program."""
        samples = self.samples(indices)
        arrays = self.task.arrays(samples, self.task.shape_of(samples, multiple=self._everywhere.mesh.size))
        placed = self.task.backend.place(arrays, self._by_rows)
        return as_tree(placed), settings_of(self.task, arrays)

    # What is kept

    def _evaluate(self) -> None:
        self._hand_over(self.params)
        super()._evaluate()

    def _hand_over(self, params: Tree) -> None:
        """Let the model of the task, and its pipeline, compute with these values of what is trained."""
        self.task.model.params = params = self._merge(self._frozen, params)
        if self.task.runner is not None:
            self.task.runner.take(params)

    @property
    def _state(self) -> Tree:
        return {"params": self.params, "moments": self.moments}

    def save(self) -> None:
        """Save parameters and moments by orbax, and the position."""

        def write(path: Path) -> None:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(path, self._state)

        self.folder.save(write, self.position)

    def restore(self, checkpoint: Path) -> Position:
        """Bring parameters, moments and position back, to the mesh of this run."""
        path, position = self.folder.state_of(checkpoint)
        with ocp.StandardCheckpointer() as checkpointer:
            state = checkpointer.restore(path, self._state)
        self.params, self.moments = state["params"], state["moments"]
        return position

    def save_best(self) -> None:
        """Keep the parameters as the best."""
        self.folder.save_best({"/".join(path): np.asarray(leaf) for path, leaf in flatten(self.params).items()})

    def write_best(self, output: Path) -> None:
        """Write the best parameters with the tokenizer; adapters are merged into them."""
        best = unflatten({tuple(name.split("/")): leaf for name, leaf in self.folder.best().items()})
        self._hand_over({name: best.get(name, {}) for name in self.params})
        self.task.save(self.task.model, output)

    # The plan

    def parameter_sizes(self) -> list[tuple[int, int, bool]]:
        """Numbers and bytes of the parameters, and whether they are trained."""
        parts = ((self._frozen, False), (self.params, True))
        return [(leaf.size, leaf.nbytes, is_trained) for tree, is_trained in parts for leaf in jax.tree.leaves(tree)]

    def measure(self, indices: Any) -> tuple[int, float]:
        """What XLA plans beside arguments and results of a pass, and the seconds of the second of two."""
        batch, settings = self.batch(indices)
        arguments = self.params, self._frozen, batch, self._key, np.float32(1)
        program = self._add.lower(self._zeros(self.params), *arguments, settings=settings).compile()
        seconds = []
        for _ in range(2):
            summed = self._zeros(self.params)
            begin = time.perf_counter()
            jax.block_until_ready(program(summed, *arguments))
            seconds.append(time.perf_counter() - begin)
        memory: Any = program.memory_analysis()
        return int(memory.temp_size_in_bytes), seconds[-1]


def _devices(options: TrainOptions) -> list[jax.Device]:
    there = jax.devices("cpu") if options.device == "cpu" else jax.devices()
    if options.devices > len(there):
        raise InputError(
            f"devices must be at most the {len(there)} that JAX finds. Received: devices={options.devices}"
        )
    return there[: options.devices]
