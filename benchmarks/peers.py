"""hookflat beside torchattacks, pyautoattack and code written by hand: ratios of time at equal results.

    python benchmarks/peers.py [--device cpu|cuda] [--width 32] [--batch 16] [--pairs 2] [--threads 2] [--only ROW ...]
    python benchmarks/peers.py --only methods --width 16 --threads 1 --csv docs/costs.csv

ResNet-18 on 32x32 colour images, fp32; --precision bf16 lowers hookflat's searches and training passes. The two sides
of a row take turns in one process, on the same weights and images with the same budget; a ratio above 1 says how many
times as fast hookflat is. What each side reached (robust loss, error, training loss) stands beside it. The networks
of the other side are in torch's default memory format, as in the official repositories. --torchattacks FOLDER adds
that package, which pins old: `pip install --no-deps --target FOLDER torchattacks requests urllib3 idna
charset_normalizer certifi`. AutoAttack is a matter of hours on a ResNet-18: it runs on a small network trained on the
embedded digits, or on --run FOLDER, a run's network and the first --examples of its test images, in half as many
turns (the two APGDs, which warm up standard, in two at least), and none to warm up; `ensemble` is a twentieth of its
steps and queries. `methods` has no other side: it is what a whole training of each shipped recipe takes over AT's, on
images of CIFAR-10's size.
"""

from __future__ import annotations

import hookflat  # isort: skip  (before torch: it decides how threads wait)

import argparse
import importlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import by_hand
import torch
import torch.nn.functional as F
from methods import TAUGHT
from pyautoattack import AutoAttack
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hookflat import Attack, Data, Images, Recipe, Threat, hookimpl, load_recipe
from hookflat.functional.brackets import full_float32
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.shipped import recipes_folder
from hookflat.records.environment import environment
from hookflat.testing import tiny_run
from hookflat.threads import cores
from hookflat.training import loop
from hookflat.training.run import Run
from hookflat.training.trial import gigabytes, peak_memory

EPS, STEP_SIZE = 8 / 255, 0.007
METHODS: dict[str, dict[str, Any]] = {
    "at": {},
    "trades": {"loss": {"name": "trades"}},
    "mart": {"loss": {"name": "mart"}},
    "at_awp": {"plugins": {"awp": {"xi": 0.01}}},
    "random_weights": {"plugins": {"random_weights": {"xi": 0.5}}},
    "entropy_sgd": {"optimizer": {"name": "entropy_sgd", "lr": 0.01, "inner_lr": 0.01, "langevin_steps": 1000}},
    "label_noise": {"plugins": {"label_noise": {"rate": 0.4}}},
    "autoaugment": {"plugins": {"autoaugment": {}}},
}


@dataclass(eq=False)
class ColourNoise:
    """Random colour images: timing needs no more."""

    size: int = 32
    train: int = 512

    @hookimpl
    def build_data(self) -> Data:
        """Both splits, of two classes' patterns among ten."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(0, 256, (self.train, 3, self.size, self.size), generator=generator, dtype=torch.uint8)
        images = Images(x, torch.randint(0, 10, (self.train,), generator=generator))
        return Data(images, images, 10, unused=lambda count: images.x)


@dataclass
class Row:
    """Ratios of theirs over ours, one a pair."""

    name: str
    ratios: list[float] = field(default_factory=list)
    ours: float = 0.0
    seconds: float = 0.0
    reached: tuple[float, float] = (0.0, 0.0)

    def __str__(self) -> str:
        low, mid, high = min(self.ratios), statistics.median(self.ratios), max(self.ratios)
        reached = " / ".join(f"{v:.4g}" for v in self.reached)
        return f"| {self.name} | {mid:.2f} | {low:.2f} to {high:.2f} | {self.seconds:.3g} s | {reached} |"


def endless(run: Any) -> Iterator[Any]:
    """Batches of a run, epoch after epoch."""
    while True:
        run.epoch = run.step // run.steps_per_epoch
        yield from run.batches()


class Bench:
    """One network, one batch of images, and rows printed as they come."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        alone = options.device == "cpu" and options.threads == 1
        self.clock = time.process_time if alone else time.perf_counter  # the first does not count what others do
        self.warm = 1 if options.device == "cpu" else 8  # steps, until CUDA graphs are captured
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        with self.run() as run:
            self.net = run.network.to(self.device, memory_format=torch.contiguous_format)  # torch's default
            with torch.no_grad():
                for _ in range(3):  # statistics that are not those of an unused network
                    self.net.train()(torch.rand(32, 3, 32, 32, device=self.device))
        self.net.eval()
        self.x = torch.rand(options.batch, 3, 32, 32, device=self.device)
        self.y = self.net(self.x).argmax(dim=1)
        self.budget = by_hand.Budget(EPS, STEP_SIZE, 20)
        self.attack = Attack(Threat(EPS), STEP_SIZE, 20, start="uniform", precision=options.precision)

    @contextmanager
    def run(self, method: dict[str, Any] | None = None) -> Generator[Any]:
        """A training run of a method."""
        o = self.options
        tables = {
            "data": {"name": "colour_noise"},
            "model": {"name": "resnet18", "width": o.width},
            "optimizer": {"name": "sgd", "lr": 0.01, "nesterov": False},
            "attack": {"name": "pgd", "eps": EPS, "step_size": STEP_SIZE, "steps": 7, "precision": o.precision},
            "run": {"batch_size": o.batch, "threads": o.threads, "epochs": 1000, "precision": o.precision},
        }
        with tiny_run(tables | (method or {}), [ColourNoise]) as made:
            torch.set_num_threads(o.threads)
            yield made

    def compare(
        self, name: str, ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int | None = None, *, warm: int = 1
    ) -> Row:
        """Turns of both, the order alternating, after `warm` of each to warm up."""
        row = Row(name)
        seconds = {}
        pairs = self.options.pairs if pairs is None else pairs
        for i in range(pairs + warm):
            reached = {}
            for side in (ours, theirs) if i % 2 else (theirs, ours):
                self._wait()
                began = self.clock()
                reached[side] = side()
                self._wait()
                seconds[side] = self.clock() - began
            row.reached = float(reached[ours]), float(reached[theirs])
            if i >= warm:
                row.ratios.append(seconds[theirs] / seconds[ours])
        row.seconds = seconds[ours]
        print(row, flush=True)
        return row

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def loss(self, x_adv: Tensor) -> float:
        """Mean cross-entropy on the network itself."""
        with torch.no_grad():
            return F.cross_entropy(self.net.eval()(x_adv), self.y).item()

    # --- rows ---------------------------------------------------------------------------------------------------------

    def pgd(self) -> None:
        """PGD-20."""

        def ours() -> float:
            return self.loss(hookflat.pgd(self.net, self.x, self.y, attack=self.attack))

        self.compare("PGD-20, by hand", ours, lambda: self.loss(by_hand.pgd(self.net, self.x, self.y, self.budget)))
        if theirs := self._torchattacks():
            self.compare("PGD-20, torchattacks", ours, lambda: self.loss(theirs(self.x, self.y)))

    def _torchattacks(self) -> Any:
        """That package's PGD-20, where it was given."""
        if not self.options.torchattacks:
            return None
        if self.options.torchattacks not in sys.path:
            sys.path.insert(0, self.options.torchattacks)
        return importlib.import_module("torchattacks").PGD(self.net, eps=EPS, alpha=STEP_SIZE, steps=20)

    def rloss(self) -> None:
        """RLoss with one and with ten restarts."""
        few = (self.x[: max(2, len(self.x) // 4)], self.y[: max(2, len(self.x) // 4)])
        package = self._torchattacks()
        for restarts, (x, y), pairs in ((1, (self.x, self.y), None), (10, few, 2)):

            def ours(x: Tensor = x, y: Tensor = y, restarts: int = restarts) -> float:
                return hookflat.robust_loss(self.net, (x, y), attack=self.attack, restarts=restarts).loss

            def plainly(x: Tensor = x, y: Tensor = y, restarts: int = restarts) -> Tensor:
                return by_hand.robust_loss(self.net, x, y, self.budget, restarts).mean()

            def packaged(x: Tensor = x, y: Tensor = y, restarts: int = restarts) -> Tensor:
                best = torch.zeros(len(y), device=self.device)
                for _ in range(restarts):
                    x_adv = package(x, y)
                    with torch.no_grad():
                        best = torch.maximum(best, F.cross_entropy(self.net(x_adv), y, reduction="none"))
                return best.mean()

            warm = int(restarts == 1)  # then the network is
            self.compare(f"RLoss x {restarts}, by hand", ours, in_float32(plainly), pairs, warm=warm)
            if package:
                self.compare(f"RLoss x {restarts}, torchattacks", ours, in_float32(packaged), pairs)

    def rerr(self) -> None:
        """RErr alone, ten restarts, at a radius where about half of the examples break."""
        x, y = self.x[: max(2, len(self.x) // 4)], self.y[: max(2, len(self.x) // 4)]
        eps, step_size = EPS / 8, STEP_SIZE / 8

        def ours() -> float:
            attack = self.attack.but(eps=eps, step_size=step_size, restarts=10)
            return hookflat.robust_error(self.net, (x, y), attack=attack).error

        def theirs() -> float:
            wrong = torch.zeros_like(y, dtype=torch.bool)
            for _ in range(10):
                x_adv = by_hand.pgd(self.net, x, y, by_hand.Budget(eps, step_size, 20))
                with torch.no_grad():
                    wrong |= self.net(x_adv).argmax(dim=1) != y
            return wrong.float().mean().item()

        self.compare("RErr x 10, by hand", ours, in_float32(theirs), 2, warm=0)

    def average(self) -> None:
        """Average-case flatness."""
        self.compare("average flatness, deep copies", *self._average(), 2)

    def _average(self, samples: int = 2) -> tuple[Callable[[], float], Callable[[], float]]:
        attack, budget = self.attack.but(steps=10), by_hand.Budget(EPS, STEP_SIZE, 10)
        xi, reference = 0.1, 0.0

        def ours() -> float:
            measured = hookflat.average_flatness(
                self.net, (self.x, self.y), xi=xi, samples=samples, reference=reference, attack=attack
            )
            return statistics.fmean(measured.losses)

        def theirs() -> float:
            return by_hand.average_flatness(self.net, self.x, self.y, budget, xi=xi, samples=samples)

        return ours, in_float32(theirs)

    def worst(self) -> None:
        """Worst-case flatness, on a batch of the protocol's size."""
        self.compare("worst flatness, 128 images, deep copies", *self._worst(), 2)

    def _worst(self, sweeps: int | None = None) -> tuple[Callable[[], float], Callable[[], float]]:
        sweeps = sweeps or (4 if self.device.type == "cpu" else 20)
        repeats = -(-128 // len(self.x))
        x, y = self.x.repeat(repeats, 1, 1, 1)[:128], self.y.repeat(repeats)[:128]

        def ours() -> float:
            measured = hookflat.worst_flatness(
                self.net, (x, y), attempts=1, reference=0.0, attack=self.attack, xi=0.003, sweeps=sweeps
            )
            return measured.losses[0]

        def theirs() -> float:
            return by_hand.worst_flatness(self.net, x, y, self.budget, xi=0.003, sweeps=sweeps, batch_size=128)

        return ours, in_float32(theirs)

    def steps(self) -> None:
        """A training step of every method, against the same by hand."""
        for name in METHODS:
            self.compare(f"step of {name}, by hand", *self._steps(name), warm=self.warm)

    def _steps(self, name: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        """A training step of a method, and the same by hand, from the same weights."""
        with self.run(METHODS[name]) as ours, self.run() as other:
            other.network.to(memory_format=torch.contiguous_format)
            training = by_hand.Training(other.network, by_hand.Budget(EPS, STEP_SIZE, 7))
            ours.network.load_state_dict(other.network.state_dict())
            mine, same = (endless(run) for run in (ours, other))

        def plainly() -> Tensor:
            batch = next(same)
            return getattr(training, name)(batch.x, batch.y)

        return lambda: loop.step(ours, next(mine)), plainly

    def awp(self) -> None:
        """What weight perturbation adds to hookflat's own steps."""
        for name, loss in (("AT", {}), ("TRADES", {"loss": {"name": "trades"}})):
            with self.run(loss) as plain, self.run(loss | METHODS["at_awp"]) as perturbed:
                sides = []
                for run in (plain, perturbed):
                    batches = endless(run)
                    sides.append(lambda run=run, batches=batches: loop.step(run, next(batches)))
                self.compare(f"time of {name}-AWP over {name}", *sides, warm=self.warm)

    def methods(self) -> None:
        """A whole training of every shipped recipe of one network, over AT's."""
        by_name = {}
        with tempfile.TemporaryDirectory() as folder:
            teachers = {name: Path(folder, name) for name in ("standard", "at")}
            for name, place in teachers.items():
                hookflat.run(self._shipped(name, {"run.epochs": 1}), folder=place)
            plain = self._examples_of(self._shipped("at"), Path(folder, "plain"))
            for name in sorted(path.stem for path in recipes_folder().glob("*.toml")):
                if name not in ("timm", "vit"):  # other networks
                    given = {key: str(teachers[teacher]) for key, teacher in TAUGHT.get(name, {}).items()}
                    recipe = self._shipped(name, given)
                    steps = self._examples_of(recipe, Path(folder, f"of-{name}"))
                    row = self.compare(f"time of {name} over AT", plain, steps, 4 * self.options.pairs)
                    by_name[name] = recipe.run.epochs_factor * statistics.median(row.ratios)
        if self.options.csv:
            lines = [f"{name},{ratio:.2f}" for name, ratio in by_name.items()]
            Path(self.options.csv).write_text("\n".join(["recipe,time", *lines, ""]), encoding="utf-8")

    def _shipped(self, name: str, values: dict[str, Any] | None = None) -> Recipe:
        """A shipped recipe at CIFAR-10's scale, on noise, without measures."""
        o = self.options
        stages = ("eval.curves", "eval.through_training", "eval.final", "eval.final_flatness", "plugins.early_stopping")
        sizes = {
            "data.name": "colour_noise",
            "model.width": o.width,
            "run.batch_size": o.batch,
            "run.threads": o.threads,
        }
        off = {f"{stage}.enabled": False for stage in stages}
        catalogue = Catalogue([ColourNoise])
        overrides = sizes | off | (values or {})
        return load_recipe(name, overlays=["scales/cifar10"], overrides=overrides, catalogue=catalogue)

    def _examples_of(self, recipe: Recipe, folder: Path) -> Callable[[], Tensor]:
        """Steps for as many examples as two batches of AT have, from the middle of the training on."""
        run = Run(recipe, folder, trial=True)
        run.folder.prepare(recipe)
        run.build()
        run.step = run.epochs // 2 * run.steps_per_epoch
        batches = endless(run)
        count = 2 * self.options.batch // run.batch_size

        def steps() -> Tensor:
            torch.set_num_threads(self.options.threads)
            return torch.stack([loop.step(run, next(batches)).detach() for _ in range(count)]).mean()

        return steps

    def peak(self) -> None:
        """The share of a matrix product's peak that the attack reaches; a backward pass counts as a forward one."""
        a = torch.rand(2048, 2048, device=self.device)
        best = 0.0
        for _ in range(6):
            self._wait()
            began = time.perf_counter()
            a @ a
            self._wait()
            best = max(best, 2 * 2048**3 / (time.perf_counter() - began))
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counted, torch.no_grad():
            self.net(self.x)
        self._wait()
        began = time.perf_counter()
        hookflat.pgd(self.net, self.x, self.y, attack=self.attack)
        self._wait()
        rate = 41 * counted.get_total_flops() / (time.perf_counter() - began)
        print(f"\nPGD-20 reaches {rate / 1e9:.0f} GFLOP/s, {rate / best:.0%} of a matrix product's {best / 1e9:.0f}")

    def profile(self) -> None:
        """The kinds of operations in which steps, attacks and measures, ours and by hand, spend 95 % of their time."""
        for name in ("at", "mart", "at_awp"):
            for side, call in zip(("", " by hand"), self._steps(name), strict=True):
                self._profile(f"a step of {name}{side}", call)
        x, y = self.x, self.y
        self._profile("PGD-20", lambda: hookflat.pgd(self.net, x, y, attack=self.attack))
        self._profile("PGD-20 by hand", lambda: by_hand.pgd(self.net, x, y, self.budget))
        for what, sides in (("average-case flatness", self._average()), ("worst-case flatness", self._worst(2))):
            for side, call in zip(("", " by hand"), sides, strict=True):
                self._profile(f"{what}{side}", call)
        with shorter_autoattack(20):
            sides = self._autoattacks(self.net, x[:2], y[:2], EPS / 1000)
            for side, call in zip(("", ", pyautoattack"), sides, strict=True):
                self._profile(f"a twentieth of AutoAttack standard on 2 robust images{side}", call)

    def launches(self) -> None:
        """How many operations torch is asked for, which takes Python's time: no views, one on a list of tensors as one.

        A GPU may still launch one for each tensor of a list, where their shapes or strides differ.
        """
        print("\n| operations asked of torch | ours | by hand |\n|---|---|---|")
        sides = {f"a step of {name}": self._steps(name) for name in METHODS}
        for what, calls in sides.items():
            ours, theirs = (launched(call) for call in calls)
            print(f"| {what} | {ours} | {theirs} |", flush=True)
        one, two = self._worst(1), self._worst(2)
        ours, theirs = (launched(b) - launched(a) for a, b in zip(one, two, strict=True))
        print(f"| a step of worst-case flatness | {ours} | {theirs} |")

    def _profile(self, what: str, call: Callable[[], Any]) -> None:
        """The shares of each kind of operation, until they make 95 %, and the largest operation of each."""
        call()
        with torch.profiler.profile() as profiler:
            call()
            self._wait()
        gpu = self.device.type == "cuda"
        times: dict[str, dict[str, float]] = {}
        for event in profiler.key_averages():
            if gpu != (event.device_type == torch.autograd.DeviceType.CUDA) or "#" in event.key:
                continue  # on a GPU the kernels alone: not who launched them
            seconds = event.self_device_time_total if gpu else event.self_cpu_time_total
            times.setdefault(kind_of_operation(event.key), {})[event.key.removeprefix("aten::")] = seconds
        shares = {kind: sum(of_kind.values()) for kind, of_kind in times.items()}
        total, told, shown = sum(shares.values()), 0.0, []
        for kind in sorted(shares, key=lambda kind: -shares[kind]):
            if told < 0.95 * total:
                told += shares[kind]
                largest = max(times[kind], key=lambda name: times[kind][name])
                shown.append(f"{kind} {shares[kind] / total:.1%} ({largest} {times[kind][largest] / total:.1%})")
        print(f"\n{what}: {', '.join(shown)}", flush=True)

    def pipeline(self) -> None:
        """Images a second that the input pipeline delivers, and that PGD-7 consumes."""
        crops = {"plugins": {"augment": {}, "autoaugment": {}}}
        with self.run(crops) as run:
            batches = endless(run)
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < 2:
                batch = next(batches)
                run.hook.transform_batch(run=run, batch=batch)
                count += len(batch.y)
            self._wait()
            delivered = count / (time.perf_counter() - began)
        began = time.perf_counter()
        hookflat.pgd(self.net, self.x, self.y, attack=self.attack, steps=7)
        self._wait()
        consumed = len(self.x) / (time.perf_counter() - began)
        print(f"\nimages a second: crop, flip, AutoAugment and Cutout {delivered:.0f}; PGD-7 takes {consumed:.0f}")

    def linear(self) -> None:
        """Time against examples, restarts and perturbations."""

        def rloss(count: int, restarts: int) -> Callable[[], Any]:
            pair = (self.x[:count], self.y[:count])
            return lambda: hookflat.robust_loss(self.net, pair, attack=self.attack, restarts=restarts)

        few = max(len(self.x) // 4, 1)
        asked = {
            "RLoss by examples": {few * n: rloss(few * n, 1) for n in (1, 2, 4)},
            f"RLoss of {few} examples by restarts": {n: rloss(few, n) for n in (1, 2, 4)},
            "average-case flatness by perturbations": {n: self._average(n)[0] for n in (1, 2, 4)},
        }
        for what, calls in asked.items():
            took = {}
            for number, call in calls.items():
                began = self.clock()
                call()  # gives numbers: it waited for the device
                took[number] = self.clock() - began
            slope, constant = statistics.linear_regression(list(took), list(took.values()))
            first = next(iter(took.values()))
            ratios = ", ".join(f"{n}: {s / first:.2f}" for n, s in took.items())
            print(f"\ntime of {what}: {constant:+.3g} s {slope:+.3g} s each; over the first {ratios}", flush=True)

    def memory(self) -> None:
        """The largest memory of a process that makes one training step of AT, or measures flatness."""
        for what in ("step", "flatness"):
            ours, theirs = (self._alone(side) for side in (what, f"{what} by hand"))
            print(f"\npeak memory of a {what}, a process of its own: {ours}, by hand {theirs}")

    def processes(self) -> None:
        """A step of AT by two processes with a thread each, over one process with two threads."""
        if self.device.type == "cpu":
            one, two = self._alone("seconds", threads=2), self._alone("seconds", processes=2)
            print(f"\na step of AT, 1 process with 2 threads: {one}; 2 processes with 1 thread: {two}")

    def _alone(self, what: str, *, processes: int = 1, threads: int = 1) -> str:
        """What `alone` prints in processes of its own."""
        o = self.options
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        numbers = ["--width", str(o.width), "--batch", str(o.batch), "--threads", str(threads)]
        command = [sys.executable, *(launcher if processes > 1 else []), __file__, "--alone", what, *numbers]
        # memory that is freed goes back at once: the largest is what was held
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": str(threads)}
        command += ["--device", o.device, "--precision", o.precision]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        return done.stdout.strip()

    def alone(self, what: str) -> None:
        """Print the memory or the seconds of one thing, where nothing is held for another."""
        with self._single(what) as call:
            seconds = []
            for _ in range(4):
                began = time.perf_counter()
                call()
                self._wait()
                seconds.append(time.perf_counter() - began)
        if what != "seconds":
            print(gigabytes(peak_memory(self.device)))
        elif os.environ.get("RANK", "0") == "0":
            print(f"{statistics.median(seconds[1:]):.3g} s")

    @contextmanager
    def _single(self, what: str) -> Generator[Callable[[], Any]]:
        if "flatness" in what:
            ours, theirs = self._average()
            yield theirs if "by hand" in what else ours
            return
        with self.run() as run:
            batches = endless(run)
            self.net = run.network
            if "by hand" not in what:
                yield lambda: loop.step(run, next(batches))
                return
            run.measurements.start = {}
            self.net.to(memory_format=torch.contiguous_format)
            training = by_hand.Training(self.net, by_hand.Budget(EPS, STEP_SIZE, 7))

            def plainly() -> Tensor:
                batch = next(batches)
                return training.at(batch.x, batch.y)

            yield plainly

    def _attacked(self) -> tuple[Any, Tensor, Tensor, float]:
        """Network, images and labels for AutoAttack, and a radius: of a run folder, or quickly trained on digits."""
        if self.options.run:
            loaded = hookflat.load(self.options.run)
            net, (x, y), eps = loaded.network, loaded.data.test[: self.options.examples], loaded.attack.threat.eps
        else:
            tables = {"data": {"name": "digits"}, "model": {"name": "resnet_small"}}
            attack = {"name": "pgd", "eps": 0.15, "step_size": 0.0335, "steps": 7}
            with tiny_run(tables | {"run": {"epochs": 8, "batch_size": 64}, "attack": attack}) as run:
                for _ in range(8):
                    for batch in run.batches():
                        loop.step(run, batch)
                    run.epoch += 1
            net, (x, y), eps = run.network, run.data.test[: self.options.examples], 0.1
        net = net.eval().to(memory_format=torch.contiguous_format).to(self.device)
        return net, x.to(self.device), y.to(self.device), eps

    def autoattack(self) -> None:
        """RErr by AutoAttack: both APGDs, and standard."""
        net, x, y, eps = self._attacked()
        self._autoattack(f"both APGDs, pyautoattack ({len(y)} images)", net, x, y, eps, ["apgd-ce", "apgd-t"], turns=2)
        self._autoattack(f"AutoAttack standard, pyautoattack ({len(y)} images)", net, x, y, eps)

    def ensemble(self) -> None:
        """A twentieth of AutoAttack standard: of --run, or of robust images (a radius where none breaks)."""
        count = max(2, len(self.x) // 4)
        kind, attacked = f"{count} robust images", (self.net, self.x[:count], self.y[:count], EPS / 1000)
        if self.options.run:
            kind, attacked = f"{self.options.examples} images", self._attacked()
        with shorter_autoattack(20):
            self._autoattack(f"a twentieth of AutoAttack standard on {kind}, pyautoattack", *attacked)

    def _autoattack(
        self, name: str, net: Any, x: Tensor, y: Tensor, eps: float, attacks: list[str] | None = None, turns: int = 1
    ) -> None:
        turns = max(turns, self.options.pairs // 2)
        self.compare(name, *self._autoattacks(net, x, y, eps, attacks), turns, warm=0)

    def _autoattacks(
        self, net: Any, x: Tensor, y: Tensor, eps: float, attacks: list[str] | None = None
    ) -> tuple[Callable[[], float], Callable[[], float]]:
        """AutoAttack, ours and the package's."""
        version = "custom" if attacks else "standard"
        listed: dict[str, Any] = {"attacks": attacks} if attacks else {}

        def ours() -> float:
            return hookflat.autoattack(net, (x, y), eps=eps, batch_size=250, version=version, **listed).error

        def theirs() -> float:
            package = AutoAttack(net, norm="Linf", eps=eps, seed=0, version=version, device=x.device, **listed)
            if listed:
                package.apgd.n_restarts = package.fab.n_restarts = 1
            _, answers = package.run_standard_evaluation(x, y, batch_size=250)
            return (answers != y).float().mean().item()

        return ours, theirs


def in_float32(call: Callable[[], Any]) -> Callable[[], Any]:
    """As measures compute: without the TF32 that GPUs use for float32."""

    def precisely() -> Any:
        with full_float32():
            return call()

    return precisely


class Launches(TorchDispatchMode):
    """Counts the operations inside, backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or "empty" in str(func))
        return func(*args, **(kwargs or {}))


def launched(call: Callable[[], Any]) -> int:
    """The operations of a call, once it is warm."""
    call()
    with Launches() as seen:
        call()
    return seen.count


@contextmanager
def shorter_autoattack(times: int) -> Generator[None]:
    """The package with so many times fewer steps and queries, on both sides."""
    plain = AutoAttack.__init__

    def short(self: Any, *arguments: Any, **options: Any) -> None:
        plain(self, *arguments, **options)
        self.square.n_queries //= times
        for attack in (self.apgd, self.apgd_targeted, self.fab):
            attack.n_iter //= times

    AutoAttack.__init__ = short
    try:
        yield
    finally:
        AutoAttack.__init__ = plain


KINDS = {
    "convolutions, backward": ("convolution_backward", "wgrad", "dgrad", "bwd"),
    "convolutions, forward": ("conv", "winograd", "fprop"),
    "matrix products": ("addmm", "bmm", "mm", "matmul", "gemm", "linear"),
    "batch norm": ("batch_norm", "bn_"),
    "activations and their gradients": ("threshold", "relu", "clamp", "softmax"),
    "copies and new tensors": ("copy", "cat", "empty", "fill", "zero", "clone", "contiguous", "memcpy", "index"),
    "sums and means": ("sum", "mean", "norm", "max", "min", "sort", "topk"),
    "products, sums and signs of tensors": ("mul", "add", "sub", "div", "sign", "where", "sqrt", "elementwise"),
}
"""Of operations, by parts of their names: the first that fits."""


def kind_of_operation(name: str) -> str:
    """One of KINDS, or "others"."""
    return next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), "others")


def machine() -> str:
    """What the numbers below it depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor()
    facts = environment()
    gpus = f", {', '.join(facts['gpus'])}" if facts["gpus"] else ""
    return f"{cpu}, {cores()} core(s){gpus}, torch {torch.__version__}, revision {facts['git_revision']}"


ROWS = (
    *("pgd", "rloss", "rerr", "average", "worst", "steps", "awp", "autoattack"),
    *("peak", "pipeline", "linear", "memory", "processes"),
)
MORE = ("methods", "profile", "launches", "ensemble")
"""Rows that are made only where they are asked for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=2, help="turns of each side; half as many of AutoAttack")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--examples", type=int, default=6, help="for AutoAttack")
    parser.add_argument("--run", metavar="FOLDER", help="for AutoAttack")
    parser.add_argument("--torchattacks", metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=(*ROWS, *MORE), default=ROWS)
    parser.add_argument("--csv", metavar="FILE", help="for methods: written there")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["ACCELERATE_USE_CPU"] = str(options.device == "cpu").lower()  # for the runs of hookflat.testing
    bench = Bench(options)
    if options.alone:
        bench.alone(options.alone)
        return
    print(machine())
    print(f"ResNet-18 of width {options.width}, batch {options.batch}, {options.device}, {options.threads} thread(s)\n")
    print("| what, against | median ratio | range | ours | reached: ours / theirs |\n|---|---|---|---|---|")
    for row in options.only:
        getattr(bench, row)()
    print(f"\npeak memory of the process {gigabytes(peak_memory(bench.device))}")


if __name__ == "__main__":
    main()
