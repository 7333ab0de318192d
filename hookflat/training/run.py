"""A run: everything the loop and the plugins share, built once from a recipe."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hookflat import threads
from hookflat.errors import TrainingFailed, UserError
from hookflat.evaluation.weights import load_weights
from hookflat.functional import seeds
from hookflat.functional.attack_view import AttackView
from hookflat.functional.brackets import restored
from hookflat.functional.data import Batch, Data
from hookflat.functional.layers import Bfloat16
from hookflat.recipe.catalogue import Hooks
from hookflat.recipe.loading import Recipe
from hookflat.recipe.options import period_in_epochs
from hookflat.records.folder import RunFolder
from hookflat.training.console import Console
from hookflat.training.core import Core
from hookflat.training.finite import Watch
from hookflat.training.measuring import Measurements, Subject
from hookflat.training.trackers import Tracking


class Run:
    """What plugins see as `run`.

    recipe: the checked recipe; `recipe.run`, `recipe.eval` are its options.
    data: the images (`hookflat.functional.data.Data`).
    network: the plain network; its weights are the ones in training.
    model: the network to call in losses: `network`, distributed and in the run's precision.
    optimizer, schedule: as built by their plugins, prepared by accelerate.
    step, epoch: how many are done. total_steps, epochs, steps_per_epoch: how many there are.
    device, rank, processes: this process's place.
    console: `console.say(text)` tells the user something.
    """

    data: Data
    network: nn.Module
    model: nn.Module
    optimizer: Any
    schedule: Any

    def __init__(self, recipe: Recipe, folder: Path, *, quiet: bool = True) -> None:
        self.recipe = recipe
        self.accelerator = _accelerator()
        self.device = self.accelerator.device
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.console = Console(main=self.main, quiet=quiet)
        self.folder = RunFolder(folder, main=self.main)
        self.tracking: Tracking | None = None
        self.plugins = recipe.registered()
        self.hooks = Hooks(self.plugins | {"core": Core()})
        self.hook = self.hooks.call
        self.measurements = Measurements(self)
        self.epochs = recipe.run.total_epochs
        self.step = self.epoch = 0
        self.lr = 0.0
        self.watch = Watch(self.device)
        self._loss_sum = torch.zeros((), device=self.device)
        self._began = time.perf_counter()
        self._generators: dict[str, tuple[int, torch.Generator]] = {}
        self._view_step = -1

    # --- building -----------------------------------------------------------------------------------------------------

    def build_network(self) -> None:
        """Load the data and make the network, each by its plugin: all that measuring needs."""
        self.data = self.hook.build_data(run=self)
        set_seed(seeds.derive(self.recipe.run.seed, "build_model") % 2**32)
        network = self.hook.build_model(run=self)
        self.network = network.to(self.device, memory_format=torch.channels_last).train()
        if self.device.type == "cpu":
            torch.set_num_threads(self._threads())

    def _threads(self) -> int:
        """Those of the recipe; where it says nothing, those that the work is worth. At most this process's share."""
        x = self.data.train.x[: max(1, self.recipe.run.batch_size // self.processes)].float() / 255
        wanted = self.recipe.run.threads or threads.fitting(self.network, x.to(memory_format=torch.channels_last))
        return min(wanted, threads.limit())

    def build(self) -> None:
        """Load the data and make network, optimizer and schedule, each by its plugin."""
        size = self.recipe.run.batch_size
        if size % self.processes:
            raise UserError(f"run.batch_size = {size} does not divide by the {self.processes} processes")
        self.build_network()
        self.steps_per_epoch = len(self._batch_starts())
        self.total_steps = self.epochs * self.steps_per_epoch
        if not self.steps_per_epoch:
            raise UserError(
                f"{len(self.data.train)} training examples do not fill one batch on {self.processes} processes"
            )
        precise = self.recipe.run.precision == "fp32"
        optimizer = self.hook.build_optimizer(
            run=self, parameters=[p for p in self.network.parameters() if p.requires_grad]
        )
        schedule = self.hook.build_schedule(run=self, optimizer=optimizer)
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(
            self.network if precise else Bfloat16(self.network), optimizer, schedule
        )
        if isinstance(self.model, DistributedDataParallel):
            self.model.broadcast_buffers = False  # else the main process's statistics replace the others' at every pass
        self._view = AttackView(self.network)  # shares memory, which prepare may have moved

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
        return seeds.derive(self.recipe.run.seed, name, self.step)

    def uniform(self, name: str, batch: Batch, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform draws in [0, 1) for every example of the batch: (n, *shape), however many processes share it."""
        return seeds.uniform(batch.row, shape, self.seed(name))

    # --- a step -------------------------------------------------------------------------------------------------------

    @property
    def attack_model(self) -> AttackView:
        """The network as attacks see it: evaluation mode, frozen, batch norm folded; fresh in every step."""
        if self._view_step != self.step:
            self._view.refresh()
            self._view_step = self.step
        return self._view

    def _batch_starts(self) -> list[int]:
        """Where batches begin in an epoch's order. The last one is left out if it is too small for batch statistics.

        That is less than a quarter of the batch size, or than two examples on every process.
        """
        size, count = self.recipe.run.batch_size, len(self.data.train)
        enough = max(size / 4, 2 * self.processes)
        return [first for first in range(0, count, size) if min(size, count - first) >= enough]

    def batches(self) -> Iterator[Batch]:
        """This process's part of the batches that are left in the current epoch."""
        train, size = self.data.train, self.recipe.run.batch_size
        order = torch.randperm(len(train), generator=seeds.generator(self.recipe.run.seed, "order", self.epoch))
        for first in self._batch_starts()[self.step - self.epoch * self.steps_per_epoch :]:
            set_seed(seeds.derive(self.recipe.run.seed, "global", self.rank, self.step) % 2**32)
            members = order[first : first + size]
            share = len(members) // self.processes
            row = torch.arange(self.rank * share, (self.rank + 1) * share)
            x, y = (t.to(self.device) for t in train.__getitems__(members[row]))
            index, row = members[row].to(self.device), row.to(self.device)
            labeled = torch.ones_like(y, dtype=torch.bool)
            yield Batch(x, y, y, index, labeled, row, global_size=share * self.processes)

    def loss(self, batch: Batch, x_adv: Tensor) -> Tensor:
        """The whole training loss, a scalar: the `[loss]` slot and every `extra_loss`."""
        loss = self.hook.loss(run=self, batch=batch, x_adv=x_adv)
        for extra in self.hook.extra_loss(run=self, batch=batch, x_adv=x_adv):
            loss = loss + extra
        self.watch.see("loss", loss)
        return loss

    def criterion(self, logits: Tensor, target: Tensor) -> Tensor:
        """Per-example training loss (n,) of logits with `batch.target`."""
        return self.hook.criterion(run=self, logits=logits, target=target)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, averaged over processes, to the parameters' `.grad`."""
        self.accelerator.backward(loss)

    def gradients_at(self, batch: Batch, x_adv: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the whole training loss for `weights` (zeros where none flow), averaged over processes.

        For weight perturbations that follow gradients: running statistics stay, and `.grad` is empty again after it.
        """
        with restored(self.network.buffers()):
            self.backward(self.loss(batch, x_adv))
        found = [w.grad.clone() if w.grad is not None else torch.zeros_like(w) for w in weights]
        self.zero_grad()
        return found

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def update(self, loss: Tensor) -> None:
        """One step of the optimizer and of the schedule; `loss` and running statistics are averaged over processes."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        self.watch.see("gradients", torch.nn.utils.get_total_norm(gradients))
        self._loss_sum += loss
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self._average_buffers()
        self.step += 1

    @property
    def mid_cycle(self) -> bool:
        """Whether the optimizer is inside an outer step (see `build_optimizer`)."""
        return getattr(self.optimizer.optimizer, "mid_cycle", False)

    # --- an epoch -----------------------------------------------------------------------------------------------------

    def blame(self, error: BaseException) -> TrainingFailed | None:
        """The plugin and hook that `error` came out of, as told to a user."""
        every = [self.hooks, *self.measurements.hooks.values()]
        return next((told for hooks in every if (told := hooks.blame(error))), None)

    def eval_model(self) -> nn.Module:
        """The network to measure."""
        return self.hook.eval_model(run=self)

    def _average_buffers(self) -> None:
        """Running statistics, each process's own part of the batch's, become the same everywhere; one reduction."""
        buffers = [b for b in self.network.buffers() if b.is_floating_point()]
        if self.processes > 1 and buffers:
            mean = self.accelerator.reduce(torch.cat([b.flatten() for b in buffers]), "mean")
            for buffer, part in zip(buffers, mean.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))

    def is_due(self, period: float) -> bool:
        """Whether something that happens every `period` (`hookflat.recipe.options.Period`) is due after this epoch.

        It always is after the last one.
        """
        return self.epoch == self.epochs or self.epoch % period_in_epochs(period, self.epochs) == 0

    def end_epoch(self) -> dict[str, Any]:
        """Record the epoch's training loss, run the measures that are due; returns what an epoch's line shows."""
        self.check()
        self.epoch += 1
        loss = self.accelerator.reduce(self._loss_sum / self.steps_per_epoch, "mean")
        self._loss_sum.zero_()
        at = {"epoch": self.epoch, "step": self.step}
        line: dict[str, Any] = {"lr": self.lr, "loss": float(loss)}
        self.record(at | {"stage": "training", "split": "train"} | line)
        due = {n: s for n, s in self.measurements.during.items() if s.every and self.is_due(s.every)}
        if due:
            model = self.eval_model()
            for name, stage in due.items():
                subjects: dict[str, Subject] = {
                    s: self.measurements.subject(model, s, stage.examples) for s in stage.splits
                }
                for split, result in self.measurements.stage(name, stage, subjects).items():
                    self.record(at | {"stage": name, "split": split} | result["values"])
                    line[split] = line.get(split, {}) | result["values"]
        self.hook.epoch_end(run=self)
        return line

    def record(self, line: dict[str, Any]) -> None:
        """One line for metrics.jsonl, and its numbers for the trackers."""
        self.folder.append(line)
        if self.tracking:
            self.tracking.log(line)

    def keep_snapshot(self) -> None:
        """Save the network of `eval_model` as it is after this epoch (`checkpoints/epoch-000005.safetensors`)."""
        self.folder.save_weights(self.folder.snapshot(self.epoch), self.eval_model(), epoch=self.epoch)

    def keep_best(self, **about: Any) -> None:
        """Save the network of `eval_model` as the best so far (`checkpoints/best.safetensors`, with `about`)."""
        self.folder.save_weights(self.folder.best, self.eval_model(), epoch=self.epoch, **about)

    def check(self) -> None:
        """Raises TrainingFailed when a value was not finite since the last check, on any process."""
        if found := self.watch.first(self.accelerator):
            step, hook = found
            name = {"craft": "attack", "loss": "loss"}.get(hook)
            culprit = f" (plugin {self.recipe.slot_names[name]!r})" if name else ""
            raise TrainingFailed(
                f"not finite: the result of hook {hook!r}{culprit} in step {step + 1} of {self.total_steps} "
                f"(epoch {step // self.steps_per_epoch + 1})"
                + (f"; the last good checkpoint stays: {kept}" if (kept := self.folder.last_checkpoint()) else "")
            )

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """A checkpoint of everything, after which a restart goes on as if never stopped."""
        self.watch.see("after_step", *self.network.state_dict().values())
        self.check()
        self._loss_sum = self.accelerator.reduce(self._loss_sum, "mean")  # every process goes on from what is saved
        beside = self.folder.checkpoint_beside()
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(beside), safe_serialization=True)
        if self.main:
            torch.save(self._state(), beside / "hookflat.pt")
        self.accelerator.wait_for_everyone()
        self.folder.finish_checkpoint(self.step, self.epoch)
        self.accelerator.wait_for_everyone()

    def _state(self) -> dict[str, Any]:
        states = {n: p.state_dict() for n, p in self.plugins.items() if hasattr(p, "state_dict")}
        return {
            "step": self.step,
            "epoch": self.epoch,
            "loss_sum": self._loss_sum.cpu(),
            "lr": self.lr,
            "metrics": self.folder.written(),
            "seconds": time.perf_counter() - self._began,
            "plugins": states,
        }

    def resume(self) -> bool:
        """Go on from the last checkpoint, if there is one."""
        checkpoint = self.folder.last_checkpoint()
        if checkpoint is None:
            self.folder.rewind(0)
            return False
        self.accelerator.load_state(str(checkpoint))
        state = torch.load(checkpoint / "hookflat.pt", map_location="cpu", weights_only=True)
        self.step, self.epoch = state["step"], state["epoch"]
        self._loss_sum.copy_(state["loss_sum"])
        self.lr = state["lr"]
        self.folder.rewind(state["metrics"])
        self._began = time.perf_counter() - state.get("seconds", 0.0)  # earlier versions did not say
        for name, plugin_state in state["plugins"].items():
            self.plugins[name].load_state_dict(plugin_state)
        return True

    def finish(self) -> dict[str, Any]:
        """Measure the last and the best network by the final stages; write weights and eval.json."""
        seconds = round(time.perf_counter() - self._began, 1)
        model = self.eval_model()
        self.folder.save_weights(self.folder.path / "model.safetensors", model, epoch=self.epoch)
        if model is not self.network:
            self.folder.save_weights(self.folder.path / "model_in_training.safetensors", self.network, epoch=self.epoch)
        self.accelerator.wait_for_everyone()
        results: dict[str, Any] = {"recipe": self.recipe.name, "epochs": self.epochs, "processes": self.processes}
        results |= {"seconds": {"training": seconds}, "classes": self.data.num_classes}
        results |= {"protocol": self.measurements.protocol(), "models": {}}
        kept = ["last", *(["best"] if self.folder.best.exists() else [])]
        self.console.measuring({label: self.measurements.planned(label) for label in kept}, self.measurements.tally)
        results["models"]["last"] = {"epoch": self.epoch} | self.measurements.end(model, "last")
        if "best" in kept:
            weights, about = load_weights(self.folder.best)
            with restored(model.state_dict().values()):
                model.load_state_dict(weights)
                results["models"]["best"] = about | self.measurements.end(model, "best")
        return results


def _accelerator() -> Accelerator:
    """The processes of this launch. Raises UserError when fewer run than the launcher was asked for."""
    environment = os.environ
    wanted = environment.get("WORLD_SIZE", "1")
    alone = "RANK" not in environment
    if alone and "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
        wanted = "several"  # accelerate launch sets the address for several processes, and then starts one
    if not alone or wanted == "1":
        accelerator = Accelerator(
            mixed_precision="no", step_scheduler_with_optimizer=False, cpu=not torch.cuda.is_available()
        )
        if accelerator.num_processes == int(wanted):
            return accelerator
    raise UserError(
        f"the launcher was asked for {wanted} processes, but started one: without GPUs, use "
        "ACCELERATE_USE_CPU=true python -m torch.distributed.run --standalone --nproc-per-node N -m hookflat run ..."
    )
