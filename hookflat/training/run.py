"""A run: what the loop and the plugins share, built once from a recipe."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hookflat import threads
from hookflat.errors import TrainingFailed, UserError
from hookflat.functional import seeds
from hookflat.functional.attack_view import AttackView, views_of
from hookflat.functional.attacks import Objective
from hookflat.functional.brackets import restored
from hookflat.functional.choices import Precision
from hookflat.functional.data import Batch, Data
from hookflat.reading.shapes import check_classes
from hookflat.recipe.options import period_in_epochs
from hookflat.recipe.recipe import Recipe
from hookflat.records.folder import RunFolder
from hookflat.records.weights import about_weights
from hookflat.training.batches import Batches
from hookflat.training.console import Console
from hookflat.training.core import Core
from hookflat.training.finite import Finite
from hookflat.training.fitting import check_fit, check_made, fitting_threads
from hookflat.training.hooks import Hooks
from hookflat.training.launch import accelerator, agreed
from hookflat.training.measuring import Measurements
from hookflat.training.not_finite import first_place, not_finite
from hookflat.training.passes import Compiled, LossScale, in_precision
from hookflat.training.subject import Subject
from hookflat.training.trackers import Trackers


class Run:
    """What plugins see as `run`.

    recipe: the checked recipe; `recipe.run`, `recipe.eval` are its options.
    data: the images (`hookflat.Data`).
    network: the plain network; its weights are the ones in training.
    model: the network to call in losses: `network`, distributed and in the run's precision.
    optimizer, schedule: as built by their plugins, prepared by accelerate.
    step, epoch: how many are done. total_steps, epochs, steps_per_epoch: how many there are.
    batch_size: examples of a full step; batch_sizes: of each step of an epoch. Over all processes.
    device, rank, processes: this process's place; main: whether it is the one that writes. accelerator: Accelerate's.
    plugins: every plugin of the training, by name.
    saved: whether this session wrote a checkpoint. stopping: whether a signal asked to stop after the step at work.
    console: `console.say(text)` tells the user something. folder: the run's folder (`hookflat.RunFolder`).
    expected_classes: of the weights that will be loaded into the network, where that is known (`hookflat eval`).
    trial: whether nothing of it is kept and no number looked at (`hookflat show --cost`, `hookflat run --dry-run`).
    """

    data: Data
    network: nn.Module
    model: nn.Module
    optimizer: Any
    schedule: Any
    measurements: Measurements

    def __init__(self, recipe: Recipe, folder: Path, *, quiet: bool = True, trial: bool = False) -> None:
        self.recipe, self.trial = recipe, trial
        self.accelerator = accelerator()
        self.device = self.accelerator.device
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.console = Console(main=self.main, quiet=quiet)
        self.folder = RunFolder(folder, main=self.main)
        self.trackers: Trackers | None = None
        self.plugins = recipe.registered()
        self.hooks = Hooks(self.plugins | {"core": Core()})
        self.hook = self.hooks.call
        self.measures = {stage: Hooks(measures) for stage, measures in recipe.measures.items()}
        self.epochs = recipe.run.total_epochs
        self.batch_size = recipe.run.scaled_batch_size
        self.step = self.epoch = 0
        self.expected_classes: int | None = None
        self.saved = self.stopping = False
        self.lr = 0.0
        self.finite = Finite(self.device)
        self.loss_scale: LossScale | None = None
        self.auto: Precision | None = None  # what an attack's precision "auto" is in this run
        self.last: tuple[Batch, Tensor] | None = None
        self.loss_sum = torch.zeros((), device=self.device)
        self.began = time.perf_counter()
        self._generators: dict[str, tuple[int, torch.Generator]] = {}
        self._views: dict[tuple[Precision, bool], tuple[AttackView, int]] = {}

    # --- building -----------------------------------------------------------------------------------------------------

    def build_data(self) -> None:
        """Load the data by its plugin."""
        self.data = self.hook.build_data(run=self)
        self.expect_classes(self.data.num_classes)
        self.measurements = Measurements(self.recipe, self.data, self.accelerator, self.folder, self.measures)

    def expect_classes(self, classes: int) -> None:
        """Raises UserError where weights that will be loaded have other than `classes` of the data.

        For plugins that know the classes before the images are decoded.
        """
        check_classes(self.expected_classes, classes)

    def build_network(self) -> None:
        """Load the data and make the network, each by its plugin: all that measuring needs."""
        from accelerate.utils import set_seed

        self.build_data()
        set_seed(seeds.derive_seed(self.recipe.run.seed, "build_model") % 2**32)
        network = self.hook.build_model(run=self)
        check_made(network, self.recipe.slot_names["model"])
        self.measurements.begin(network)
        self.network = network.to(self.device).train()
        check_fit(self.network, self.recipe.slot_names["model"], self.data)
        if self.device.type == "cpu":
            self.network.to(memory_format=torch.channels_last)
            share = self.data.train.part(0, max(1, self.batch_size // self.processes))
            torch.set_num_threads(min(self.recipe.run.threads or fitting_threads(self.network, share), threads.limit()))

    def build(self) -> None:
        """Load the data and make network, optimizer and schedule, each by its plugin."""
        options = self.recipe.run
        if self.batch_size % self.processes:
            raise UserError(f"run.batch_size = {self.batch_size} does not divide by the {self.processes} processes")
        if self.batch_size < 2 * self.processes * options.accumulation:
            raise UserError(
                f"run.accumulation = {options.accumulation}: a batch of {self.batch_size} on {self.processes} "
                "process(es) has less than two examples for each part"
            )
        self.build_network()
        self.network.to(memory_format=torch.channels_last)
        self._batches = Batches(self.data.train, self.batch_size, options.seed, self.rank, self.processes, self.device)
        self.batch_sizes = self._batches.sizes()
        self.steps_per_epoch = len(self._batches)
        self.total_steps = self.epochs * self.steps_per_epoch
        if not self.steps_per_epoch:
            raise UserError(
                f"{len(self.data.train)} training examples do not fill one batch on {self.processes} processes"
            )
        optimizer = self.hook.build_optimizer(
            run=self, parameters=[p for p in self.network.parameters() if p.requires_grad]
        )
        schedule = self.hook.build_schedule(run=self, optimizer=optimizer)
        if options.precision == "fp16":
            self.loss_scale = LossScale(self.accelerator, self.network.parameters())
        model = in_precision(self.network, options)
        if isinstance(model, Compiled):
            share = max(2, self.batch_size // self.processes // options.accumulation)
            x = torch.zeros(share, *self.data.train.shape, device=self.device)
            model.try_on(x, self.accelerator, self.console.say)
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(model, optimizer, schedule)
        if isinstance(self.model, DistributedDataParallel):
            self.model.broadcast_buffers = False  # else the main process's statistics replace the others' at every pass

    # --- random numbers -----------------------------------------------------------------------------------------------

    def rng(self, name: str) -> torch.Generator:
        """A CPU generator for this purpose and step, the same on every process. Draws within a step continue."""
        step, generator = self._generators.get(name, (-1, None))
        if step != self.step or generator is None:
            generator = seeds.generator(self.recipe.run.seed, name, self.step)
            self._generators[name] = (self.step, generator)
        return generator

    def seed(self, name: str) -> int:
        """A seed for this purpose and step, the same on every process."""
        return seeds.derive_seed(self.recipe.run.seed, name, self.step)

    def uniform(self, name: str, batch: Batch, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform draws in [0, 1) for every example of the batch: (n, *shape), however many processes share it."""
        return seeds.uniform(batch.row, shape, self.seed(name))

    # --- a step -------------------------------------------------------------------------------------------------------

    def batches(self) -> Iterator[Batch]:
        """This process's part of the batches that are left in the current epoch."""
        return self._batches.of_epoch(self.epoch, self.step - self.epoch * self.steps_per_epoch)

    def training_images(self, index: Tensor) -> Tensor:
        """Training images (n, C, H, W) float32 in [0, 1] for `index` (n,) int64, on the device as it is."""
        return self._batches.images_at(index)

    def parts(self, batch: Batch) -> list[tuple[slice, Batch]]:
        """The batch in `[run] accumulation` parts, as many on every process; fewer where it is small."""
        return batch.parts(min(self.recipe.run.accumulation, max(1, batch.global_size // self.processes // 2)))

    def transform(self, batch: Batch, *, without: Any) -> None:
        """Another batch through `transform_batch` of every plugin but one (the caller)."""
        self.hooks.without("transform_batch", without)(run=self, batch=batch)

    def craft(self, batch: Batch, objective: Objective) -> Tensor:
        """Adversarial examples of another batch, or for another objective, by the `[attack]` slot alone."""
        return self.hooks.only("craft", self.recipe.slots["attack"])(run=self, batch=batch, objective=objective)

    def objective_of_loss(self, batch: Batch) -> Objective | None:
        """What the `[loss]` slot lets attacks maximise; None where it has nothing of its own to say."""
        return self.hooks.only("attack_objective", self.recipe.slots["loss"])(run=self, batch=batch)

    @property
    def attack_model(self) -> AttackView:
        """The network as attacks see it: evaluation mode, frozen, batch norm folded; fresh in every step."""
        return self.attack_view()

    def attack_view(self, *, precision: Precision = "fp32", compile: bool = False) -> AttackView:
        """The same, its convolutions in bfloat16, or through `torch.compile`. What "auto" is, a run decides once."""
        if precision == "auto":
            precision = self.auto = self.auto or agreed(precision, self.accelerator)
        view, step = self._views.get((precision, compile), (None, -1))
        if view is None:
            view = AttackView(self.network, precision=precision, compile=compile)  # `prepare` may have moved the memory
        elif step != self.step:
            view.refresh()
        self._views[precision, compile] = (view, self.step)
        return view

    def crafted(self, batch: Batch, x_adv: Tensor) -> None:
        """A step's adversarial examples are found."""
        self.finite.see("craft", x_adv)
        self.last = batch, x_adv
        for view in self.kept_views():
            view.forget()  # the next attack is at other weights

    def kept_views(self) -> list[AttackView]:
        """The views that attacks of this run made of its network."""
        return [*(view for view, _ in self._views.values()), *views_of(self.network)]

    def loss(self, batch: Batch, x_adv: Tensor) -> Tensor:
        """The whole training loss, a scalar: the `[loss]` slot and every `extra_loss`."""
        loss = self.hook.loss(run=self, batch=batch, x_adv=x_adv)
        self._see("loss", loss)
        extras = self.hook.extra_loss(run=self, batch=batch, x_adv=x_adv)
        for plugin, extra in zip(self.hooks.behind("extra_loss", extras), extras, strict=True):
            loss = loss + extra
            self._see("extra_loss", loss, plugin)
        return loss

    def criterion(self, logits: Tensor, target: Tensor) -> Tensor:
        """Per-example training loss (n,) of logits with `batch.target`."""
        return self.hook.criterion(run=self, logits=logits, target=target)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, averaged over processes, to the parameters' `.grad`."""
        (self.loss_scale or self.accelerator).backward(loss)

    def loss_and_gradients(self, batch: Batch, x_adv: Tensor) -> Tensor:
        """The whole training loss, detached; its gradients, averaged over processes, are added to `.grad`.

        In `[run] accumulation` parts one after another: processes exchange the sum of their gradients. Every example of
        the global batch weighs the same. No gradients inside `torch.no_grad`.
        """
        total, parts = torch.zeros((), device=self.device), self.parts(batch)
        for number, (place, part) in enumerate(parts, start=1):
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(self.model):
                loss = self.loss(part, x_adv[place]) * part.weight(self.processes)
                if torch.is_grad_enabled():
                    self.backward(loss)
            total = total + loss.detach()
        return total

    def gradients_at(self, batch: Batch, x_adv: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the whole training loss for `weights` (zeros where none flow), averaged over processes.

        For weight perturbations that follow gradients: running statistics stay, and `.grad` is empty again after it.
        """
        with restored(self.network.buffers()):
            self.loss_and_gradients(batch, x_adv.detach())
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        for w in weights:
            w.grad = None  # an optimizer might overwrite them with zeros
        self._see("gradients", torch.nn.utils.get_total_norm(gradients))
        self.zero_grad()
        return gradients

    def _see(self, hook: str, value: Tensor, plugin: str = "") -> None:
        """In float16 what is not finite cancels the step; else it ends the training."""
        if self.loss_scale:
            self.loss_scale.see(value)
        else:
            self.finite.see(hook, value, plugin=plugin)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def begin(self) -> None:
        """A step begins."""
        self.finite.step = self.step
        if self.loss_scale:
            self.loss_scale.begin(self.network)

    def update(self, loss: Tensor) -> None:
        """One step of the optimizer and of the schedule; `loss` and running statistics are averaged over processes.

        In float16 a step with an overflow ends here with weights, running statistics and optimizer as they were before;
        schedule and step count go on.
        """
        self._see("gradients", self._clipped())
        self.lr = self.optimizer.param_groups[0]["lr"]
        cancelled = self.loss_scale.step(self.optimizer) if self.loss_scale else self.optimizer.step()
        if self.loss_scale and self.loss_scale.exhausted:
            place = first_place(self, "loss")
            raise TrainingFailed(f"not finite in float16 at any scale of the loss; first {place or 'the loss itself'}")
        self.optimizer.zero_grad()
        self.schedule.step()
        if not cancelled:
            self.loss_sum += loss
            statistics = [b for b in self.network.buffers() if b.is_floating_point()]  # of a part of the batch
            self.average_over_processes(statistics)
        self.step += 1

    def _clipped(self) -> Tensor:
        """Clip the gradients where `[run]` says so; their norm before. What is not finite moves no weight.

        It ends the training at the next `check`, which names the layer: for that, the weights must be as they were.
        """
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        if limit := self.recipe.run.max_grad_norm:
            norm = torch.as_tensor(self.accelerator.clip_grad_norm_(self.network.parameters(), limit))
        else:
            norm = torch.nn.utils.get_total_norm(gradients)
        known = norm.device.type == "cpu" and bool(norm.isfinite())  # to ask a GPU is to wait for it
        for gradient in gradients if not (known or self.loss_scale) else ():
            gradient.nan_to_num_(0.0, 0.0, 0.0)
        return norm

    def average_over_processes(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor, of the same shape on every process, becomes its mean over the processes; one reduction."""
        if self.processes > 1 and tensors:
            mean = self.accelerator.reduce(torch.cat([t.flatten() for t in tensors]), "mean")
            for tensor, part in zip(tensors, mean.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    @property
    def mid_cycle(self) -> bool:
        """Whether the optimizer is inside an outer step (see `build_optimizer`)."""
        return getattr(self.optimizer.optimizer, "mid_cycle", False)

    def check(self) -> None:
        """Raises TrainingFailed when a value was not finite since the last check, on any process."""
        if first := self.finite.first(self.accelerator):
            raise not_finite(self, *first)

    # --- measuring and keeping ----------------------------------------------------------------------------------------

    def eval_model(self) -> nn.Module:
        """The network to measure."""
        return self.hook.eval_model(run=self)

    def subject(self, split: str, examples: int | None = None, model: nn.Module | None = None) -> Subject:
        """`model` (that of `eval_model`) and the first `examples` of "train", "test" or "holdout", to measure on."""
        return self.measurements.subject(self.eval_model() if model is None else model, split, examples)

    def is_due(self, period: float, *, first: bool = False) -> bool:
        """Whether something that happens every `period` (`hookflat.Period`) is due after this epoch.

        It always is after the last one. `first`: it begins with the first epoch, not with the first whole period.
        """
        return self._due_after(self.epoch, period, first)

    def times_due(self, period: float, *, first: bool = False) -> int:
        """After how many epochs of the whole training `is_due` says yes."""
        return sum(self._due_after(epoch, period, first) for epoch in range(1, self.epochs + 1))

    def _due_after(self, epoch: int, period: float, first: bool) -> bool:
        return epoch == self.epochs or (epoch - first) % period_in_epochs(period, self.epochs) == 0

    def record(self, stage: str, split: str, **numbers: float) -> None:
        """One line for metrics.jsonl, after this step and epoch, and its numbers for the trackers."""
        line = {"epoch": self.epoch, "step": self.step, "stage": stage, "split": split} | numbers
        self.folder.append(line)
        if self.trackers:
            self.trackers.log(line)

    def keep_snapshot(self) -> None:
        """Save the network of `eval_model` as it is after this epoch."""
        self.folder.save_network(str(self.epoch), self.eval_model(), epoch=self.epoch)

    def keep_best(self, **about: Any) -> None:
        """Save the network of `eval_model` as the best so far, with `about`."""
        self.folder.save_network("best", self.eval_model(), epoch=self.epoch, **about)

    @property
    def best_epoch(self) -> int | None:
        """After which `keep_best` was last called; None where it was not."""
        file = self.folder.network("best")
        return about_weights(file).get("epoch") if file else None

    def close(self) -> None:
        """End the live display and the trackers."""
        self.console.close()
        if self.trackers:
            self.trackers.close()
