"""The hooks: the documentation of the training loop, in the order in which they are called.

A plugin is a dataclass. Its fields are the options of its recipe table; its methods marked with `@hookimpl` are its
behaviour. A method takes the arguments below that it needs, by name.

How several answers combine is said for each hook:

- *slot*: exactly one plugin answers, the one its recipe table names (`[data]`, `[model]`, `[optimizer]`, `[schedule]`,
  `[attack]`, `[loss]`);
- *first*: the first plugin that returns something other than None answers;
- *all*: every plugin is called.

The order is: `[plugins.*]` as written in the recipe, then the slots in the order above, then the core's own defaults;
a method marked `@hookimpl(tryfirst=True)` comes before all. One marked `@hookimpl(wrapper=True)` brackets all that
answer after it: it `yield`s once, in `try`/`finally` where it has something to put back, and returns the result.

In the first step of every session the shapes and ranges of results are checked, and that the weights are back.

State that must survive a restart goes through `state_dict()` and `load_state_dict(state)`, plain methods of the plugin,
as in torch: tensors, numbers, strings and containers of them. Random numbers come from `run.rng` and `run.uniform`,
which need no saving.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from hookflat.functional.attacks import Objective
    from hookflat.functional.data import Batch, Data
    from hookflat.training.run import Run
    from hookflat.training.subject import Subject

hookspec = pluggy.HookspecMarker("hookflat")
hookimpl = pluggy.HookimplMarker("hookflat")


# --- build: once, before the first step -------------------------------------------------------------------------------


@hookspec(firstresult=True)
def build_data(run: Run) -> Data | None:
    """Slot `[data]`. Load the images: `hookflat.Data` with uint8 training and test sets.

    Wrap it to change the data set, for example to hold examples out.
    """


@hookspec(firstresult=True)
def build_model(run: Run) -> nn.Module | None:
    """Slot `[model]`. The network: images (n, C, H, W) float32 in [0, 1] to logits (n, K), any normalisation inside.

    `run.data` is there (channels, classes, statistics). The global generator is seeded by the run's seed during the
    call, the same on every process. Wrap it to change the network, for example its activations.
    """


@hookspec(firstresult=True)
def build_optimizer(run: Run, parameters: list[nn.Parameter]) -> Optimizer | None:
    """Slot `[optimizer]`. A torch optimizer over `parameters`, all that require gradients.

    One whose outer step takes several calls of `step()` sets its attribute `mid_cycle` to True while the weights are
    intermediate: `after_step` waits until it is False again.
    """


@hookspec(firstresult=True)
def build_schedule(run: Run, optimizer: Optimizer) -> LRScheduler | None:
    """Slot `[schedule]`. A torch scheduler over `optimizer`, stepped after every training step.

    `run.total_steps` is the length of the training in steps.
    """


# --- a training step --------------------------------------------------------------------------------------------------


@hookspec
def transform_batch(run: Run, batch: Batch) -> None:
    """All. Change `batch` in place: augmentation of `x`, noise in `target`. Keep `x` in [0, 1]."""


@hookspec(firstresult=True)
def attack_objective(run: Run, batch: Batch) -> Objective | None:
    """First. What the attack maximises: `objective(model, x_adv) -> (n,)`; the core answers cross-entropy with
    `batch.y`.

    `run.attack_model` is the network as attacks see it: evaluation mode, frozen.
    """


@hookspec(firstresult=True)
def craft(run: Run, batch: Batch, objective: Objective) -> Tensor | None:
    """Slot `[attack]`. The inner maximisation: adversarial examples (n, C, H, W) in [0, 1] for `batch.x`, detached."""


@hookspec(firstresult=True)
def gradients(run: Run, batch: Batch, x_adv: Tensor) -> Tensor | None:
    """First; the core answers. Fill the gradients of the weights by `run.loss_and_gradients(batch, x_adv)`; return that
    loss.

    Wrap it to compute them at other weights: perturb, `yield`, restore in `finally` (`hookflat.restored`,
    `hookflat.moved`). Perturbations that follow gradients get them from `run.gradients_at`, averaged over
    processes. Wrappers nest in recipe order, the first outermost. A plugin that needs gradients at several weights
    answers instead of wrapping.
    """


@hookspec(firstresult=True)
def loss(run: Run, batch: Batch, x_adv: Tensor) -> Tensor | None:
    """Slot `[loss]`. The training loss, a scalar: mean over the batch. Forward passes go through `run.model`.

    Where a cross-entropy with the target stands in the formula, call `run.criterion(logits, target)`.
    """


@hookspec
def extra_loss(run: Run, batch: Batch, x_adv: Tensor) -> Tensor | None:
    """All, added to the loss: scalars (penalties, auxiliary tasks)."""


@hookspec(firstresult=True)
def criterion(run: Run, logits: Tensor, target: Tensor) -> Tensor | None:
    """First. Per-example loss (n,) of logits (n, K) with `batch.target`; the core answers cross-entropy.

    A loss may call it several times in a step (clean and adversarial logits); weight perturbations run losses again.
    """


@hookspec
def after_step(run: Run) -> None:
    """All. The weights have just changed by a whole optimizer step: clip them, average them."""


# --- an epoch and its measures ----------------------------------------------------------------------------------------


@hookspec
def epoch_end(run: Run) -> None:
    """All. An epoch is over, `run.epoch` counts it already. Every process calls it.

    A plain method `passes(run)` of the plugin says how many examples it sends through the network in the whole
    training, for `hookflat show --cost`.
    """


@hookspec(firstresult=True)
def eval_model(run: Run) -> nn.Module | None:
    """First. The network to measure and to save as the result; the core answers the one in training.

    The same on every process, buffers too: the core has averaged those of the network in training after its last step.
    """


@hookspec
def measure(subject: Subject) -> dict[str, float] | None:
    """All measures of one `[eval.STAGE]`. Numbers by name for one split; the caller adds split, step and protocol.

    Two measures that return the same name are an error. Every process calls it and returns the same numbers. One that
    ends in `_stderr` is the standard error of the number before it. `subject.keep` puts tables, figures and texts
    beside the results; what a long measure computes in parts goes through `subject.work`.

    Plain methods say more: `numbers()` gives a `hookflat.Quantity` (label, unit, whether lower is better) for each
    name, and every table, report, console and tracker takes it from there; for the bar's time left `passes()` says how
    often it will send an example through the network, and `searches()` which RLosses, pairs of steps and restarts, it
    asks `subject.robust` for: their passes are counted once, whoever asks.
    """


# --- the end ----------------------------------------------------------------------------------------------------------


@hookspec
def draw(run: Run, records: list[dict[str, Any]]) -> dict[str, Figure] | None:
    """All. Figures by file name (without ending) from the lines of `metrics.jsonl`. Only the main process calls it.

    What a killed command left out the next one draws: `run` has data and the last network then, no optimizer.
    """
