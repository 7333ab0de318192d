"""Labelled images from elsewhere beside the training set."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from hookflat import Batch, Data, Images, Resizing, Run, Share, UserError, class_labels, hookimpl, load_sets


@dataclass(eq=False)
class ExtraData:
    """Extra data: `fraction` of every batch is drawn, with replacement, from labelled images at `path`.

    Of a batch of B examples over all processes, int(fraction B) are extra images, as in the authors' samplers; an
    epoch is as many steps as without them. They come from ti_500K_pseudo_labeled.pickle (Carmon et al.), from the
    generated 1m.npz to 50m.npz (Wang et al.), or from whatever `[data]` of images can read. npz that are not compressed
    are mapped into memory as they lie, other large files after they were read once. Losses see their labels as those of
    pseudo-labels. How often an extra image and a training image are seen is in the run's data.json.
    """

    paper: ClassVar[str] = "Carmon et al. 2019, arXiv 1905.13736; Wang et al. 2023, arXiv 2302.04638"
    kind: ClassVar[str] = "more data"
    off: ClassVar[dict[str, Any]] = {"fraction": 0}

    path: Annotated[str, Field(description="file or folder of images with labels, or a hub id")] = ""
    config: Annotated[str | None, Field(description="configuration of a hub id that has several")] = None
    fraction: Annotated[Share, Field(description="of a batch, extra images")] = 0.7
    split: Annotated[str, Field(description="of the images at path, where they have splits")] = "train"
    image: Annotated[str | None, Field(description="column of the images, if there are several")] = None
    label: Annotated[str | None, Field(description="column of the labels, if there are several")] = None
    size: Annotated[int, Field(ge=0, le=4096, description="pixels a side to resize to; 0: as they are")] = 0
    crop: Annotated[Share, Field(description="middle square to take, of the shorter side; 0: squash the whole")] = 0.0
    channels: Annotated[Literal[1, 3] | None, Field(description="make all gray (1) or RGB (3)")] = None
    images: Annotated[int, Field(ge=0, description="the first ones; 0: all")] = 0

    def __post_init__(self) -> None:
        self._images: Images | None = None

    @hookimpl(wrapper=True)
    def build_data(self, run: Run) -> Generator[None, Data, Data]:
        data = yield
        if self.fraction:
            if not self.path:
                raise UserError("plugins.extra_data.path is not set: a file or folder of labelled images, or a hub id")
            with run.accelerator.main_process_first():
                self._images = self._loaded(data)
        return data

    def _loaded(self, data: Data) -> Images:
        option = "plugins.extra_data"
        images = load_sets(self.path, (self.split,), f"{option}.path", self.config)[self.split]
        if self.images > len(images):
            raise UserError(f"{images.source} has {len(images)} images, not {self.images}")
        images = images.take(slice(self.images)) if self.images else images
        image, label = (images.column(of, getattr(self, of), f"{option}.{of}") for of in ("image", "label"))
        (y,), _, _ = class_labels([images], label, data.num_classes, f"{option}.label")
        hint = f"set {option}.size, and {option}.channels where the kinds differ"
        x = images.pixels(image, Resizing(self.size, self.crop, self.channels), hint)
        loaded = Images(x, y)
        if loaded.shape != data.train.shape:
            raise UserError(f"{images.source}: images are {loaded.shape}, those of [data] {data.train.shape}: {hint}")
        return loaded

    @hookimpl(wrapper=True)
    def build_optimizer(self, run: Run) -> Generator[None, Any, Any]:
        if self._images is not None:  # here, as the steps are known now
            count, trained = len(self._images), len(run.data.train)
            sizes = run.batch_sizes
            extra = sum(int(self.fraction * size) for size in sizes)
            about = {
                "path": self.path,
                "images": count,
                "fraction": self.fraction,
                "of_a_batch": int(self.fraction * sizes[0]),
                "seen_on_average": extra * run.epochs / count,
                "training_images_seen_on_average": (sum(sizes) - extra) * run.epochs / trained,
            }
            run.data.about["extra_data"] = about
            run.console.say(
                f"extra data: {about['of_a_batch']} of {sizes[0]} in a batch, from {count} images, each seen "
                f"{about['seen_on_average']:.3g} times on average; a training image "
                f"{about['training_images_seen_on_average']:.3g} times"
            )
            self._images = self._images.on(run.device)
        return (yield)

    @hookimpl(tryfirst=True)
    def transform_batch(self, run: Run, batch: Batch) -> None:
        if self._images is None:
            return
        draws = run.uniform("extra_data", batch, (2,)).double()  # of 24 bits each: 50 million need more than one
        drawn = ((draws[:, 0] + draws[:, 1] / 2**24) * len(self._images)).long()
        taken = batch.interleaved(int(self.fraction * batch.global_size)) & batch.labeled
        batch.replace(taken, *self._images.at(drawn.to(self._images.y.device), run.device))
