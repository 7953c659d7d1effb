"""The loop, whole: images in, weights moved, numbers logged, checkpoints written."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from manyviews import checkpoint, distributed, methods
from manyviews.backbones import Encoder
from manyviews.data import Loader, Source
from manyviews.engine import folder as files
from manyviews.engine import observe, optim
from manyviews.engine.log import Log
from manyviews.engine.step import backpropagate
from manyviews.engine.stopping import Request, Stopped, watch
from manyviews.errors import UserError
from manyviews.methods import Method
from manyviews.progress import progress
from manyviews.recipe import Recipe
from manyviews.types import At, Canvases
from manyviews.views import Views


def build(recipe: Recipe) -> Method:
    """The method that a recipe describes, on the CPU, initialized from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    encoder = Encoder(recipe.backbone.name, **recipe.backbone.settings)
    return methods.get(recipe.method.name)(encoder, **recipe.method.settings)


def train(method: Method, recipe: Recipe, source: Source, folder: Path) -> None:
    """Train in a run folder, from its checkpoint if there is one, until the recipe's last step.

    Args:
        method: what `build` made of the recipe.
        recipe: everything that decides the run but the images.
        source: all the images, of which `recipe.data.holdout` are watched and not trained on.
        folder: made by `engine.folder.create`. It receives the log, checkpoints and, at the end, the encoder.

    Raises:
        UserError: another process trains in the folder, or the data, the recipe and the checkpoint do not fit.
        Stopped: SIGINT or SIGTERM arrived; the checkpoint is written.
        FloatingPointError: the loss is no longer finite; the last good checkpoint is still there.
    """
    device = distributed.start()
    first = distributed.rank() == 0
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(watch())
        if first:
            stack.enter_context(files.lock(folder))
        check(recipe, source)
        train_on, held = observe.hold_out(source, recipe.data.holdout)
        loader = _loader(recipe, train_on)
        method = method.to(device).to(memory_format=torch.channels_last).train()
        if recipe.step.sync_batchnorm:
            method = distributed.sync_batchnorm(method, device)
        optimizer = optim.build(method, recipe.optimizer, device)

        steps = max(1, round(recipe.epochs * loader.steps_per_epoch))
        identity = {"images": len(source), "steps": steps}
        step, before = _restore(folder, method, optimizer, identity)
        distributed.broadcast(method.state_dict().values())
        if recipe.step.compile:
            for module in method.modules():
                if isinstance(module, Encoder):
                    module.compile()

        watched = observe.prepare(train_on, held, recipe) if first else None
        log = stack.enter_context(Log(folder, step, recipe.observe.trackers)) if first else None
        meter = _Meter(recipe.data.batch_size)
        begun = saved = time.monotonic()
        every = max(1, round(recipe.observe.epochs * loader.steps_per_epoch)) if recipe.observe.epochs else steps
        update = stack.enter_context(progress("pretrain", quiet=not first))
        note, row, numbers = "", dict[str, float](), dict[str, float]()

        def save() -> None:
            # Weights that are not finite must not replace the last good ones.
            if first and meter.finite():
                facts = identity | {"step": step, "seconds": before + time.monotonic() - begun}
                checkpoint.save(folder / files.CHECKPOINT, method, optimizer, facts)

        def look() -> None:
            nonlocal numbers
            if log and watched:
                start = time.monotonic()
                numbers = observe.observe(method, watched, recipe, device)
                log.write({"step": step} | {f"observe/{k}": v for k, v in numbers.items()})
                observe.warn(numbers, step, say)
                meter.since += time.monotonic() - start  # is not training

        if step == 0:
            look()
        while step < steps:
            for canvases in loader.batches(step // loader.steps_per_epoch, step % loader.steps_per_epoch):
                at = At(step, steps, loader.steps_per_epoch)
                # Dropout and its like: from the step alone, so that a resumed run draws what an uninterrupted one did.
                torch.manual_seed((recipe.seed * 2**40 + step) * 2**12 + distributed.rank())
                lr = optim.schedule(optimizer, recipe.optimizer, recipe.data.batch_size, at)
                optimizer.zero_grad(set_to_none=True)
                terms = backpropagate(
                    method,
                    _parts(canvases.to(device), method, recipe, at),
                    at,
                    precision=recipe.step.precision,
                    memory=recipe.step.memory,
                    device=device,
                )
                method.before_update(at)
                norm = optim.clip(method, recipe.optimizer.clip)
                optimizer.step()
                method.after_update(at)
                meter.add(terms, norm)
                step += 1

                last = step == steps
                if step % recipe.observe.steps == 0 or last:
                    row = meter.read() | {"lr": lr, "epoch": step / loader.steps_per_epoch}
                    if not math.isfinite(row["loss"]):
                        raise FloatingPointError(
                            f"The loss is {row['loss']} at step {step}. Lower the learning rate, for example --set "
                            f"optimizer.lr={recipe.optimizer.lr / 3:.2g}; the last good checkpoint is in {folder}."
                        )
                    if log:
                        log.write({"step": step, **row})
                    note = f"{row['images_per_second']:.0f} images/s, loss {row['loss']:.3f}"
                update(step, steps, note)
                if step % every == 0 or last:
                    look()
                if _asked(stop, step, recipe, device):
                    save()
                    raise Stopped(stop.signal or "another process")
                if last or time.monotonic() - saved > 60 * recipe.observe.checkpoint_minutes:
                    save()
                    saved = time.monotonic()
                if last:
                    break
        if first:
            write_encoder(folder, method.keep, recipe, step)
            summary = {
                **identity,
                "seconds": before + time.monotonic() - begun,
                "device": str(device),
                "bad_images": len(loader.bad),
                "bad": loader.bad[:100],
                "last": row | {f"observe/{k}": v for k, v in numbers.items()},
            }
            checkpoint.write_text(folder / files.SUMMARY, json.dumps(summary, indent=2))
            for where, reason in loader.bad[:5]:
                say(f"Skipped {where}: {reason}")
            if len(loader.bad) > 5:
                say(f"Skipped {len(loader.bad) - 5} more images: see {folder / files.SUMMARY}")
        distributed.barrier()


def write_encoder(folder: Path, encoder: Encoder, recipe: Recipe, step: int) -> None:
    """Write the encoder alone, with what one must know to use it."""
    facts = {
        "encoder": encoder.spec,
        "mean": recipe.data.mean,
        "std": recipe.data.std,
        "test_size": recipe.test_size,
        "recipe": recipe.name,
        "step": step,
    }
    checkpoint.save_tensors(folder / files.ENCODER, encoder.model.state_dict(), facts)


def check(recipe: Recipe, source: Source) -> None:
    """Raises UserError when the recipe cannot run on this many images and processes."""
    batch, world = recipe.data.batch_size, distributed.world_size()
    if batch % (world * recipe.step.accumulate):
        raise UserError(
            f"A batch of {batch} cannot be shared evenly by {world} processes in {recipe.step.accumulate} parts: "
            "change --set data.batch_size or --set step.accumulate."
        )
    images = len(observe.hold_out(source, recipe.data.holdout)[0])
    if images < batch:
        raise UserError(
            f"{source.name} has {images} images to train on, fewer than a batch of {batch}: "
            f"give more images, or --set data.batch_size={2 ** int(math.log2(max(2, images)))}."
        )


def _loader(recipe: Recipe, source: Source) -> Loader:
    world = distributed.world_size()
    with progress("decode", quiet=distributed.rank() > 0) as update:
        return Loader(
            source,
            recipe.data.canvas,
            recipe.data.batch_size // world,
            seed=recipe.seed,
            rank=distributed.rank(),
            world_size=world,
            memory=int(recipe.data.memory_gb * 2**30) // world,
            progress=update,
        )


def _parts(canvases: Canvases, method: Method, recipe: Recipe, at: At) -> list[Callable[[], Views]]:
    def views(part: Canvases) -> Views:
        data, recompute = recipe.data, recipe.step.memory == "constant"
        return Views(part, method.looks, recipe.seed, at.epoch, data.mean, data.std, recompute)

    return [partial(views, part) for part in canvases.chunk(recipe.step.accumulate)]


def _restore(
    folder: Path, method: Method, optimizer: torch.optim.Optimizer, identity: dict[str, int]
) -> tuple[int, float]:
    """The step to continue from and the seconds spent so far: those of the checkpoint, if there is one."""
    path = folder / files.CHECKPOINT
    if not path.exists():
        return 0, 0.0
    facts = checkpoint.load(path, method, optimizer)
    if any(facts[k] != v for k, v in identity.items()):
        raise UserError(
            f"The run in {folder} was started on {facts['images']} images for {facts['steps']} steps, and now there "
            f"are {identity['images']} images for {identity['steps']} steps: restore the images, or start a new run."
        )
    return int(facts["step"]), float(facts["seconds"])


def _asked(stop: Request, step: int, recipe: Recipe, device: torch.device) -> bool:
    """Whether any process was asked to stop. Several agree at log lines only, for that costs a synchronization."""
    if distributed.world_size() == 1:
        return bool(stop)
    if step % recipe.observe.steps:
        return False
    return bool(distributed.total(torch.tensor(float(bool(stop)), device=device)) > 0)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class _Meter:
    """Sums of the loss terms since the last log line, kept on the device: reading them is the only synchronization."""

    batch: int
    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    since: float = field(default_factory=time.monotonic)

    def add(self, terms: dict[str, Tensor], norm: Tensor) -> None:
        for name, value in (terms | {"grad_norm": norm}).items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1

    def read(self) -> dict[str, float]:
        """Means over the steps and ranks since the last reading, and images per second."""
        names = list(self.sums)
        means = (distributed.mean(torch.stack([self.sums[n].float() for n in names])) / self.count).tolist()
        rate = self.count * self.batch / max(1e-9, time.monotonic() - self.since)
        found = dict(zip(names, means, strict=True))
        norm = found.pop("grad_norm")
        self.sums.clear()
        self.count, self.since = 0, time.monotonic()
        terms = {f"loss/{k}": v for k, v in found.items()} if len(found) > 1 else {}
        return {"loss": sum(found.values())} | terms | {"grad_norm": norm, "images_per_second": rate}

    def finite(self) -> bool:
        """Whether everything since the last log line is finite."""
        return not self.sums or bool(torch.stack(list(self.sums.values())).isfinite().all())
