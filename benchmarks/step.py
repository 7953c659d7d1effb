"""Images per second of whole training steps, data included: this library, lightly and stable-pretraining.

.venv-bench/bin/python benchmarks/step.py [--data data] [--out benchmarks/step.json] [--gpu [only]]

The environment is that of `benchmarks/peers.txt`; a quarter of an hour on two cores. SimCLR, BYOL and DINO train a
ResNet-18 with the standard stem on photographs at 224 pixels and on CIFAR-10 at 32, from decoded images in memory: the
same batch, sizes of heads, distributions of views and optimizer for all.

- manyviews: the training loop's own parts, on canvases in memory; `manyviews.pretrain` is what `pretrain` logs.
- lightly: what its plain PyTorch examples do, with its transforms, heads and losses.
- stable-pretraining: its documented `Module`, `forward`, `DataModule` and `Manager` on Lightning, without the online
  probes of its examples, without checkpoints and loggers.

Both others have a DataLoader with the 8 workers of their examples, but not more than two for each core, which stay
alive. "as shipped" is the precision each takes by itself: manyviews bfloat16 where the processor has it, lightly
float32, stable-pretraining the 16-mixed of its examples on a GPU and Lightning's float32 elsewhere. Where these are all
float32, the row stands for both.

Each library has its own process, and they take turns. A turn is a short epoch, from the first image asked for to the
last update: nothing is prepared before its clock starts, and nothing is left when it stops. Waiting is the part of the
turn in which the step had no views: for a DataLoader what it is waited for, for manyviews also the making of the views,
which happens in the step (on a GPU only their launch). Reported are medians and quartiles over the rounds, and of
manyviews' ratio to the other.

With --gpu and CUDA, from noise instead of images: how close the step comes to one whose views are there already; Barlow
Twins with ViT-S/16; an epoch of CIFAR-10; and memory against the number of views.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _bench
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import manyviews as mv
from manyviews import recipes
from manyviews.data import Loader, open_source
from manyviews.engine import optim
from manyviews.engine.build import build_method
from manyviews.engine.precision import bfloat16_is_faster
from manyviews.engine.step import backpropagate
from manyviews.schedules import Constant
from manyviews.settings import Component, Data, Monitor, Optimizer, Recipe, Step
from manyviews.types import Batch, Progress
from manyviews.views import BYOL_PAIR, DINO_LOCAL, DINO_PAIR, SIMCLR, Color, Global, Local, View, Views

LIBRARIES = ("manyviews", "lightly", "stable-pretraining")
HIDDEN, OUT = {"simclr": 512, "byol": 1024, "dino": 512}, {"simclr": 128, "byol": 256, "dino": 2048}  # lightly's
BOTTLENECK = 64
RATE = {"simclr": 0.06, "byol": 0.06, "dino": 0.001}


@dataclass(frozen=True)
class Cell:
    """A method at a size.

    Attributes:
        method: "simclr", "byol" or "dino".
        size: of the global views, pixels.
        batch: images.
        steps: of an epoch.
    """

    method: str
    size: int
    batch: int
    steps: int = 3

    @property
    def kinds(self) -> tuple[View, ...]:
        """The views, as lightly's transforms have them; without blur at 32 pixels, as its examples."""
        blur: dict[str, Any] = {"blur": 0.0} if self.size == 32 else {}

        def pair(colors: tuple[Color, ...]) -> tuple[Color, ...]:
            return tuple(replace(color, **blur) for color in colors)

        if self.method == "simclr":
            return (Global(2, size=self.size, color=replace(SIMCLR, **blur)),)
        if self.method == "byol":
            return (Global(2, size=self.size, color=pair(BYOL_PAIR)),)
        local = {224: 96, 32: 16}[self.size]
        return (
            Global(2, size=self.size, area=(0.4, 1.0), color=pair(DINO_PAIR)),
            Local(6, size=local, area=(0.05, 0.4), color=replace(DINO_LOCAL, **blur)),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Of manyviews' method."""
        hidden, out = HIDDEN[self.method], OUT[self.method]
        return {
            "simclr": {"view": self.kinds[0], "hidden_dim": hidden, "output_dim": out},
            "byol": {"tasks": self.kinds, "hidden_dim": hidden, "output_dim": out},
            "dino": {"views": self.kinds, "hidden_dim": hidden, "prototypes": out, "bottleneck_dim": BOTTLENECK},
        }[self.method]


CELLS = [
    Cell("simclr", 32, 256),
    Cell("byol", 32, 256),
    Cell("dino", 32, 256, steps=2),
    Cell("simclr", 224, 8),
    Cell("byol", 224, 8),
    Cell("dino", 224, 4),
]


class Epochs:
    """Short epochs: each begins when this process is told to, and ends with how long it took."""

    def __init__(self, turns: _bench.Turns) -> None:
        self._turns, self._begun = turns, False
        self.waited = 0.0

    def begin(self) -> None:
        """The first time, say that this process is ready."""
        if not self._begun:
            self._turns.say({"ready": True})
        self._turns.wait()
        self._begun, self.waited, self._start = True, 0.0, time.perf_counter()

    def end(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._turns.say({"seconds": time.perf_counter() - self._start, "waited": self.waited})


# -- manyviews -------------------------------------------------------------------------------------------------------


def recipe_of(cell: Cell, precision: str) -> Recipe:
    name: Any = "adamw" if cell.method == "dino" else "sgd"
    optimizer = Optimizer(name, RATE[cell.method], "constant", Constant(1.0), weight_decay=0.0, momentum=0.0)
    return recipes.resolve(
        Recipe(
            name=cell.method,
            method=Component(cell.method, cell.settings),
            backbone=Component("resnet18"),
            epochs=1,
            data=Data(canvas=256 if cell.size == 224 else 32, batch_size=cell.batch, holdout=0.0),
            optimizer=optimizer,
            step=Step(precision="float32" if precision == "float32" else "auto"),
            monitor=Monitor(epochs=0, steps=cell.steps),
        )
    )


class Training:
    """A method with its optimizer, stepping as `engine.loop.train` does."""

    def __init__(self, recipe: Recipe, device: torch.device, steps: int = 10**6) -> None:
        self.recipe, self.device, self.steps, self.step = recipe, device, steps, 0
        torch.backends.cudnn.benchmark = True
        self.method = build_method(recipe).to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = optim.build(self.method, recipe.optimizer, device)

    def views(self, canvases: Batch) -> Views:
        recipe, data = self.recipe, self.recipe.data
        return Views(canvases, self.method.views, recipe.seed, self.step, data.mean, data.std, recipe.step.backward)

    def update(self, views: Views) -> None:
        at = Progress(self.step, self.steps, self.steps)
        optim.schedule(self.optimizer, self.recipe.optimizer, self.recipe.data.batch_size, at)
        self.optimizer.zero_grad(set_to_none=True)
        step = self.recipe.step
        backpropagate(self.method, [lambda: views], at, precision=step.precision, device=self.device)
        self.method.before_update(at)
        optim.clip(self.method, self.recipe.optimizer.clip)
        self.optimizer.step()
        self.method.after_update(at)
        self.step += 1


class Timed(Views):
    """Views that know how long they took to make, on a CPU."""

    seconds = 0.0

    def _make(self, kind: View, i: int) -> Tensor:
        start = time.perf_counter()
        view = super()._make(kind, i)
        self.seconds += time.perf_counter() - start
        return view


def manyviews(cell: Cell, images: list[Image.Image], precision: str, turns: _bench.Turns) -> None:
    training = Training(recipe_of(cell, precision), _device())
    data = training.recipe.data
    loader = Loader(open_source(images), data.canvas, data.batch_size)
    epochs, number = Epochs(turns), 0
    while True:
        epochs.begin()
        batches = loader.batches(number)
        for _ in range(cell.steps):
            start = time.perf_counter()
            canvases = next(batches).to(training.device)
            epochs.waited += time.perf_counter() - start
            views = Timed(canvases, cell.kinds, 0, training.step, data.mean, data.std)
            training.update(views)
            epochs.waited += views.seconds
        epochs.end()
        number += 1


def pretrain(cell: Cell, images: list[Image.Image], precision: str, turns: _bench.Turns) -> None:
    """The public function, from its own log: images per second of an epoch of a run, without what comes before."""
    recipe, epochs = recipe_of(cell, precision), 0
    turns.say({"ready": True})
    while True:
        turns.wait()
        run = mv.pretrain(images, recipe, out=Path(tempfile.gettempdir()) / f"run {epochs}")
        rate = next(row["images_per_second"] for row in run.log if "images_per_second" in row)
        turns.say({"seconds": cell.batch * cell.steps / rate, "waited": None})
        shutil.rmtree(run.folder)
        epochs += 1


# -- the others ------------------------------------------------------------------------------------------------------


class Waiting(torch.utils.data.DataLoader):
    """A DataLoader that adds to `epochs.waited` how long it was waited for."""

    epochs: Epochs

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        start = time.perf_counter()
        batches = super().__iter__()
        while True:
            batch = next(batches, None)
            self.epochs.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch
            start = time.perf_counter()


def waiting(dataset: Any, cell: Cell, epochs: Epochs) -> Waiting:
    """As in the others' examples, but for the number of workers, and that they stay alive."""
    workers = min(8, 2 * len(os.sched_getaffinity(0)))
    loader = Waiting(dataset, cell.batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True)
    loader.__dict__["epochs"] = epochs  # a DataLoader guards its attributes
    return loader


def lightly(cell: Cell, images: list[Image.Image], precision: str, turns: _bench.Turns) -> None:
    import torchvision
    from lightly.loss import DINOLoss, NegativeCosineSimilarity, NTXentLoss
    from lightly.models.modules import (
        BYOLPredictionHead,
        BYOLProjectionHead,
        DINOProjectionHead,
        SimCLRProjectionHead,
    )
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import BYOLTransform, DINOTransform, SimCLRTransform
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
    from lightly.utils.scheduler import cosine_schedule

    device = _device()
    small = cell.size == 32
    sharp = {"gaussian_blur": 0.0} if small else {}
    transform: Any
    if cell.method == "simclr":
        transform = SimCLRTransform(input_size=cell.size, **sharp)
    elif cell.method == "byol":
        transform = BYOLTransform(
            view_1_transform=BYOLView1Transform(input_size=cell.size, **sharp),
            view_2_transform=BYOLView2Transform(input_size=cell.size, **sharp),
        )
    else:
        sizes = {"global_crop_size": 32, "local_crop_size": 16, "gaussian_blur": (0.0, 0.0, 0.0)} if small else {}
        transform = DINOTransform(**sizes)

    hidden, out = HIDDEN[cell.method], OUT[cell.method]
    backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1], nn.Flatten(1))
    heads: list[nn.Module]
    if cell.method == "simclr":
        heads = [SimCLRProjectionHead(512, hidden, out)]
    elif cell.method == "byol":
        heads = [BYOLProjectionHead(512, hidden, out) for _ in range(2)]
    else:
        heads = [DINOProjectionHead(512, hidden, BOTTLENECK, out, freeze_last_layer=1) for _ in range(2)]
    online = nn.Sequential(backbone, heads[0]).to(device)
    momentum = nn.Sequential(copy.deepcopy(backbone), heads[-1]).to(device)
    if len(heads) > 1:
        deactivate_requires_grad(momentum)
    predictor = BYOLPredictionHead(out, hidden, out).to(device) if cell.method == "byol" else nn.Identity()

    parameters = [*online.parameters(), *predictor.parameters()]
    kind = torch.optim.Adam if cell.method == "dino" else torch.optim.SGD
    optimizer = kind(parameters, lr=RATE[cell.method])
    contrast, cosine = NTXentLoss(), NegativeCosineSimilarity()
    distill = DINOLoss(output_dim=OUT["dino"], warmup_teacher_temp_epochs=5).to(device)

    def loss(views: list[Tensor], epoch: int) -> Tensor:
        if cell.method == "simclr":
            return contrast(*(online(x) for x in views))
        if cell.method == "byol":
            update_momentum(online, momentum, m=cosine_schedule(epoch, 10, 0.996, 1))
            p = [predictor(online(x)) for x in views]
            z = [momentum(x).detach() for x in views]
            return 0.5 * (cosine(p[0], z[1]) + cosine(p[1], z[0]))
        update_momentum(online, momentum, m=cosine_schedule(epoch, 10, 0.996, 1))
        return distill([momentum(x) for x in views[:2]], [online(x) for x in views], epoch=epoch)

    epochs = Epochs(turns)
    loader = waiting(_Transformed(images, transform), cell, epochs)
    number = 0
    while True:
        epochs.begin()
        total: Any = 0
        for views in loader:
            found = loss([x.to(device) for x in views], min(number, 9))
            total += found.detach()
            found.backward()
            if isinstance(heads[0], DINOProjectionHead):
                heads[0].cancel_last_layer_gradients(current_epoch=number)
            optimizer.step()
            optimizer.zero_grad()
        epochs.end()
        number += 1


class _Transformed(torch.utils.data.Dataset):
    def __init__(self, images: list[Image.Image], transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.images[i])


def stable_pretraining(cell: Cell, images: list[Image.Image], precision: str, turns: _bench.Turns) -> None:
    os.environ["SPT_CACHE_DIR"] = tempfile.mkdtemp()  # inside the folder that the asking process removes
    import lightning
    import stable_pretraining as spt
    from stable_pretraining import forward
    from stable_pretraining.data import transforms as T

    def view(kind: View, color: Color) -> Any:
        jitter = {k: getattr(color, k) for k in ("brightness", "contrast", "saturation", "hue")}
        steps = [
            T.RGB(),
            T.RandomResizedCrop((kind.size, kind.size), scale=kind.area),
            T.RandomHorizontalFlip(p=kind.flip),
            T.ColorJitter(**jitter, p=color.jitter),
            T.RandomGrayscale(p=color.gray),
        ]
        if color.blur:
            steps.append(T.PILGaussianBlur(p=color.blur))
        if color.solarize:
            steps.append(T.RandomSolarize(threshold=128, p=color.solarize))
        return T.Compose(*steps, T.ToImage(**spt.data.static.ImageNet))

    found = [(kind, i, kind.color_of(i)) for kind in cell.kinds for i in range(kind.count)]
    made = {f"{kind.name}_{i}": view(kind, color) for kind, i, color in found if color is not None}
    transform = T.MultiViewTransform(made if cell.method == "dino" else list(made.values()))
    dataset = spt.data.FromTorchDataset([(image, 0) for image in images], names=["image", "label"], transform=transform)
    epochs = Epochs(turns)
    data = spt.data.DataModule(train=waiting(dataset, cell, epochs))

    class Backbone(nn.Module):
        """Its DINO tells every backbone to interpolate its position embedding, and this one has none."""

        def __init__(self) -> None:
            super().__init__()
            self.resnet = spt.backbone.from_torchvision("resnet18", weights=None)
            self.resnet.fc = nn.Identity()

        def forward(self, x: Tensor, **_: Any) -> Tensor:
            return self.resnet(x)

    hidden, out = HIDDEN[cell.method], OUT[cell.method]
    parts: dict[str, Any]
    if cell.method == "dino":
        head = nn.Sequential(
            *(nn.Linear(512, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, BOTTLENECK)),
            *(spt.backbone.L2Norm(), nn.Linear(BOTTLENECK, out, bias=False)),
        )
        parts = {"dino_loss": spt.losses.DINOv1Loss(), "forward": forward.dino}
        parts |= {"warmup_temperature_teacher": 0.04, "temperature_teacher": 0.07}
        parts |= {"warmup_epochs_temperature_teacher": 50}
    else:
        head = _mlp(512, hidden, out)
        parts = {"simclr_loss": spt.losses.NTXEntLoss(temperature=0.5), "forward": forward.simclr}
        if cell.method == "byol":
            parts = {"byol_loss": spt.losses.BYOLLoss(), "forward": forward.byol, "predictor": _mlp(out, hidden, out)}
    teach = cell.method != "simclr"
    optimizer = {"type": "Adam" if cell.method == "dino" else "SGD", "lr": RATE[cell.method]}
    module = spt.Module(
        backbone=spt.TeacherStudentWrapper(Backbone()) if teach else Backbone(),
        projector=spt.TeacherStudentWrapper(head) if teach else head,
        optim={"optimizer": optimizer, "scheduler": {"type": "CosineAnnealingLR", "T_max": 1000}, "interval": "epoch"},
        **parts,
    )

    class Clock(lightning.pytorch.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            epochs.begin()

        def on_train_epoch_end(self, *_: Any) -> None:
            epochs.end()

    spt.set(progress_bar="none", requeue_checkpoint=False, verbose="ERROR")
    teacher = [spt.callbacks.TeacherStudentCallback(update_frequency=1, update_after_backward=False)] if teach else []
    mixed = precision != "float32" and torch.cuda.is_available()
    trainer = lightning.Trainer(
        max_epochs=1000,
        num_sanity_val_steps=0,
        callbacks=[*teacher, Clock()],
        precision="16-mixed" if mixed else "32-true",
        logger=False,
        enable_checkpointing=False,
        log_every_n_steps=50,
    )
    spt.Manager(trainer=trainer, module=module, data=data, seed=0)()


def _mlp(start: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(start, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out)
    )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


TRAIN: dict[str, Callable[[Cell, list[Image.Image], str, _bench.Turns], None]] = {
    "manyviews": manyviews,
    "lightly": lightly,
    "stable-pretraining": stable_pretraining,
    "manyviews.pretrain": pretrain,
}


def serve(library: str, precision: str, cell: dict[str, Any], data: str) -> None:
    """Train, an epoch at a time, until there are no more questions."""
    turns = _bench.Turns()  # before anything is printed
    torch.manual_seed(0)
    np.random.seed(0)
    here = Cell(**cell)
    read = _bench.photographs if here.size == 224 else _bench.cifar10
    images = _bench.decoded(read(Path(data), here.batch * here.steps))
    TRAIN[library](here, images, precision, turns)


# -- on a GPU --------------------------------------------------------------------------------------------------------


class Fixed(Views):
    """Views that were made before."""

    made: dict[tuple[str, int], Tensor]

    def _make(self, kind: View, i: int) -> Tensor:
        return self.made[kind.name, i]


def against_made_views(
    method: str, backbone: str, batch: int, device: torch.device, *, rounds: int, steps: int
) -> _bench.Answer:
    """Images per second, from canvases in the host's memory, and as a part of those with views that are there already.

    The method has its paper's settings, the images are noise.
    """
    recipe = Recipe(method, Component(method), Component(backbone), 1, Data(batch_size=batch), Optimizer("lars", 0.1))
    training = Training(recipes.resolve(recipe), device)
    draw = np.random.default_rng(0)
    loader = Loader(open_source(draw.integers(0, 256, (4 * batch, 256, 256, 3), np.uint8)), 256, batch)
    once = training.views(next(loader.batches(0)).to(device))
    made = {(kind.name, i): x for kind, i, x in once.each()}

    def whole() -> None:
        for epoch in range(steps // 4):
            for canvases in loader.batches(epoch):
                training.update(training.views(canvases.to(device)))

    def fixed() -> None:
        for _ in range(steps // 4 * 4):
            views = Fixed(once.batch, training.method.views)
            views.made = made
            training.update(views)

    timed(whole, device), timed(fixed, device)
    pairs = [(timed(whole, device), timed(fixed, device)) for _ in range(rounds)]
    return {
        "method": method,
        "backbone": backbone,
        "batch": batch,
        "images_per_second": _bench.spread([steps // 4 * 4 * batch / seconds for seconds, _ in pairs]),
        "of_made_views": _bench.ratios([b for _, b in pairs], [a for a, _ in pairs]),
    }


def peak_memory(local: int, backward: Any, batch: int, device: torch.device) -> _bench.Answer:
    """MiB that a step of BYOL with ViT-S/16 adds to what is held between steps."""
    kinds = (Global(2, color=BYOL_PAIR), *((Local(local),) if local else ()))
    recipe = Recipe("byol", Component("byol", {"tasks": kinds}), Component("vit_small_patch16_224"), 1)
    recipe = recipes.resolve(replace(recipe, data=Data(batch_size=batch), step=Step(backward=backward)))
    training = Training(recipe, device)
    canvases = Batch.of(
        torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8),
        torch.full((batch, 2), 256),
        torch.arange(batch),
    ).to(device)
    peak = []
    for _ in range(2):  # the first step makes the optimizer's state
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        training.update(training.views(canvases))
        peak.append((torch.cuda.max_memory_allocated(device) - held) / 2**20)
    return {"views": f"2+{local}", "memory": backward, "batch": batch, "peak_mib": round(peak[-1])}


def cifar10_epoch() -> _bench.Answer:
    """Seconds of an epoch of 50,000 images of 32 pixels with the recipe simclr_cifar10, from the log of `pretrain`."""
    images = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    steps = 50_000 // recipes.get("simclr_cifar10").data.batch_size
    settings = {"monitor.epochs": 0, "monitor.steps": steps, "data.holdout": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        run = mv.pretrain(images, "simclr_cifar10", epochs=4, settings=settings, out=Path(folder) / "run")
        rates = [row["images_per_second"] for row in run.log if "images_per_second" in row]
    return {"recipe": "simclr_cifar10", "seconds_per_epoch": _bench.spread([50_000 / rate for rate in rates[1:]])}


def timed(do: Callable[[], None], device: torch.device) -> float:
    """Seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    do()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def on_gpu(quick: bool) -> dict[str, list[_bench.Answer]]:
    device = torch.device("cuda")
    rounds, steps, batch = (2, 4, 32) if quick else (5, 20, 256)
    found: dict[str, list[_bench.Answer]] = {"against_made_views": [], "cifar10_epoch": [], "peak_memory": []}

    def keep(kind: str, row: _bench.Answer) -> None:
        found[kind].append(row)
        print(kind, " ".join(f"{k}={v}" for k, v in row.items()), flush=True)
        torch.cuda.empty_cache()

    pairs = [(method, backbone) for method in ("simclr", "byol") for backbone in ("resnet50", "vit_small_patch16_224")]
    pairs.append(("barlow_twins", "vit_small_patch16_224"))
    for method, backbone in pairs:
        keep("against_made_views", against_made_views(method, backbone, batch, device, rounds=rounds, steps=steps))
    keep("cifar10_epoch", cifar10_epoch())
    for backward in ("per_view", "joint"):
        for local in (0, 4, 8):
            keep("peak_memory", peak_memory(local, backward, 16 if quick else 64, device))
    return found


# -- in the process that asks ----------------------------------------------------------------------------------------


def measure(cell: Cell, precision: str, libraries: list[str], rounds: int, data: Path) -> list[_bench.Answer]:
    """A row for each library."""
    role = {"precision": precision, "cell": vars(cell), "data": str(data)}
    seconds: dict[str, list[float]] = {name: [] for name in libraries}
    waited: dict[str, list[float]] = {name: [] for name in libraries}
    with _bench.workers(__file__, {name: {**role, "library": name} for name in libraries}) as workers:
        for worker in workers.values():
            worker.ask("go")  # the first epoch starts workers and allocates
        for _ in range(rounds):
            for name, worker in workers.items():
                answer = worker.ask("go")
                seconds[name].append(answer["seconds"])
                if answer["waited"] is not None:
                    waited[name].append(answer["waited"] / answer["seconds"])
    images = cell.batch * cell.steps
    return [
        {
            **{k: v for k, v in vars(cell).items() if k != "steps"},
            "precision": precision,
            "library": name,
            "images_per_second": _bench.spread([images / s for s in seconds[name]]),
            "waiting": _bench.spread(waited[name], 3) if waited[name] else None,
            "manyviews_over_it": _bench.ratios(seconds[name], seconds["manyviews"]),
        }
        for name in libraries
    ]


def show(row: _bench.Answer) -> None:
    low, rate, high = row["images_per_second"]
    rates = f"{rate:8.1f} {f'({low:.1f}-{high:.1f})':>15}"
    waiting = "" if row["waiting"] is None else f"{row['waiting'][1]:.0%}"
    ratio = "{1:5.2f} ({0:.2f}-{2:.2f})".format(*row["manyviews_over_it"])
    cell = f"{row['method']:7} {row['size']:>4} {row['batch']:>5}"
    print(f"{cell} {row['precision']:10} {row['library']:18} {rates} {waiting:>7}  {ratio}", flush=True)


def main() -> None:
    gpu = "what needs CUDA, where there is CUDA: besides the rest, or only that"
    options = _bench.parser(__doc__, "one round of small batches: whether it works", gpu).parse_args()
    if options.serve:
        serve(**json.loads(options.serve))

    there = _bench.installed("lightly", "stable-pretraining")
    for name in [k for k, v in there.items() if v is None]:
        print(f"{name} is not installed, and left out: see benchmarks/peers.txt")
    libraries = [name for name in LIBRARIES if name not in there or there[name]]
    device = _device()
    rounds, cells = options.rounds, CELLS
    if device.type == "cuda":  # which would starve on the batches of a CPU
        cells = [replace(cell, batch=max(cell.batch, 64), steps=8) for cell in CELLS]
    if options.quick:
        rounds, cells = 1, [replace(cell, batch=4 if cell.size == 224 else 32, steps=1) for cell in CELLS]
    if options.gpu == "only":
        cells = []
    precisions = ["as shipped", *(["float32"] if bfloat16_is_faster(device) else [])]

    rows = []
    print("method  size batch precision  library            images/s     (quartiles) waiting  manyviews over it")
    for cell in cells:
        for precision in precisions:
            # Once: what `pretrain` itself logs, next to the parts of its loop that the other rows are measured with.
            public = ["manyviews.pretrain"] if (cell.method, cell.size) == ("simclr", 32) else []
            for row in measure(cell, precision, [*libraries, *public], rounds, options.data):
                rows.append(row)
                show(row)
    found: _bench.Answer = {"rounds": rounds, "rows": rows}
    if len(precisions) == 1:
        found["note"] = "as shipped, all compute in float32 on this machine"
    if options.gpu and device.type == "cuda":
        found |= on_gpu(options.quick)
    _bench.write(options.out, _bench.facts(device, "manyviews", "torch", "timm", *there) | found)


if __name__ == "__main__":
    main()
