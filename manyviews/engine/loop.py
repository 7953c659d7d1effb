"""The loop, whole: images in, weights moved, numbers logged, checkpoints written."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor

from manyviews import checkpoint, distributed, methods
from manyviews.backbones import Encoder, protect
from manyviews.data import Loader, Source
from manyviews.engine import folder as files
from manyviews.engine import monitor, optim
from manyviews.engine.feed import feed
from manyviews.engine.log import Log, missing
from manyviews.engine.step import backpropagate
from manyviews.engine.stopping import Stopped, watch
from manyviews.errors import UserError, printable
from manyviews.evaluation.features import frozen
from manyviews.methods import Method
from manyviews.progress import progress
from manyviews.regularizers import Regularized
from manyviews.schedules import value
from manyviews.settings import Recipe
from manyviews.targets import EMA
from manyviews.types import Batch, Progress
from manyviews.views import Crop, Views


def build(recipe: Recipe, *, trained: bool = False) -> Method:
    """The method that a recipe describes, on the CPU, initialized from the recipe's seed.

    With `trained`, its weights come from a checkpoint, and none are fetched from elsewhere to start from.
    """
    torch.manual_seed(recipe.seed)
    settings = recipe.backbone.settings
    encoder = Encoder(recipe.backbone.name, **({**settings, "pretrained": False} if trained else settings))
    method = methods.get(recipe.method.name)(encoder, **recipe.method.settings)
    return Regularized(method, recipe.regularizers, recipe.step.accumulate) if recipe.regularizers else method


def train(method: Method, recipe: Recipe, source: Source, folder: Path) -> None:
    """Train in a run folder, from its checkpoint if there is one, until the recipe's last step.

    Args:
        method: what `build` made of the recipe.
        recipe: everything that decides the run but the images; `check` must have passed it.
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
        if first:
            stack.enter_context(files.lock(folder))
            for part in folder.glob(f".{files.CHECKPOINT}.*"):
                part.unlink()  # of a process that was killed while it wrote
        train_on, held = monitor.hold_out(source, recipe.data.holdout)
        canvas = recipe.data.canvas
        if first and source.side not in (None, canvas):
            say(
                f"Warning: {source.name} holds canvases of {source.side} pixels and not of data.canvas={canvas}: all "
                f"are resampled. Prepare them with --canvas {canvas}, or set data.canvas."
            )
        loader = _loader(recipe, train_on, device)
        stack.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
        torch.backends.cudnn.benchmark = True  # shapes are the same in every step
        method = method.to(device).to(memory_format=torch.channels_last).train()
        protect(method)
        if recipe.step.sync_batchnorm:
            method = distributed.sync_batchnorm(method, device)
        optimizer = optim.build(method, recipe.optimizer, device)

        steps = max(1, round(recipe.epochs * loader.steps_per_epoch))
        identity: dict[str, Any] = {"images": len(source), "steps": steps, "processes": distributed.world_size()}
        if recipe.data.holdout:  # the names say which images are held out
            identity["names"] = source.naming
        step, before = _restore(folder, method, optimizer, identity, loader)
        if distributed.anywhere(distributed.share(step) != step):
            raise UserError(f"Not all processes see the checkpoint in {folder}: put it where they all do.")
        distributed.broadcast(method.state_dict().values())
        if recipe.step.compile:
            for module in method.modules():
                if isinstance(module, Encoder):
                    module.features = torch.compile(module.features)  # type: ignore[method-assign]

        watched = monitor.prepare(train_on, held, recipe) if first else None
        if first and recipe.data.holdout and watched is None:
            say("Too few images to hold any out: nothing is observed while training.")
        stop = stack.enter_context(watch())  # a signal before this point has nothing to save
        log = stack.enter_context(Log(folder, step, recipe.monitor.loggers)) if first else None
        meter = _Meter(recipe.data.batch_size)
        begun = saved = time.monotonic()
        every = max(1, round(recipe.monitor.epochs * loader.steps_per_epoch)) if recipe.monitor.epochs else steps
        update = stack.enter_context(progress("pretrain", quiet=not first))
        note = ""
        row, numbers = _logged(folder) if step == steps else ({}, {})
        seen = monitor.observations(files.rows(folder))  # of a run that continues, what was observed before

        written = -1

        def save() -> None:
            nonlocal written
            # Weights that are not finite must not replace the last good ones.
            if first and step != written and meter.finite():
                facts = identity | {"step": step, "seconds": before + time.monotonic() - begun}
                checkpoint.save(folder / files.CHECKPOINT, method, optimizer, facts)
                written = step

        def save_what_is_good(kind: object, error: BaseException | None, trace: object) -> None:
            if isinstance(error, OSError):  # a disk or a network fails: the weights are as sound as before
                save()

        stack.push(save_what_is_good)

        def look() -> None:
            nonlocal numbers
            if log and watched:
                start = time.monotonic()
                numbers = monitor.measure(method, watched, recipe, device)
                log.write({"step": step} | {f"monitor/{k}": v for k, v in numbers.items()})
                seen.append(numbers)
                for alarm in monitor.alarms(seen):
                    log.write({"step": step, "alarm": alarm})
                    say(f"Warning: {alarm}")
                meter.since += time.monotonic() - start  # is not training

        if step == 0:
            look()
        first_step, warned = step, False
        batches = stack.enter_context(contextlib.closing(_batches(loader, step, steps, device)))
        canvases: Batch | None = None
        failure: Exception | None = None

        def fetch() -> None:
            """The next batch. A vote comes after it, so that no process begins a step that another one cannot."""
            nonlocal canvases, failure
            try:
                canvases, waited = next(batches, (None, 0.0))
                meter.waited += waited
            except Exception as error:  # of a disk, a network, a source: the weights are as sound as before
                failure = error

        fetch()
        if distributed.anywhere(failure is not None):
            raise failure or UserError("Another process cannot read its images.")
        while canvases is not None:
            at = Progress(step, steps, loader.steps_per_epoch)
            # Dropout and its like: from the step alone, so that a resumed run draws what an uninterrupted one did.
            torch.manual_seed(_noise(recipe.seed, step, distributed.rank()))
            lr = optim.schedule(optimizer, recipe.optimizer, recipe.data.batch_size, at)
            optimizer.zero_grad(set_to_none=True)
            terms = backpropagate(
                method,
                _parts(canvases, method, recipe, at),
                at,
                precision=recipe.step.precision,
                device=device,
            )
            method.before_update(at)
            norm = optim.clip(method, recipe.optimizer.clip)
            optimizer.step()
            method.after_update(at)
            meter.add(terms, norm)
            step += 1

            if not stop:
                fetch()
            last, stopping = step == steps, distributed.anywhere(bool(stop) or failure is not None)
            looking = step % every == 0 or last
            if step % recipe.monitor.steps == 0 or looking or stopping:
                row = meter.read() | {"lr": lr, "epoch": step / loader.steps_per_epoch} | _momentum(method, at)
                if not math.isfinite(row["loss"] + row["grad_norm"]):
                    what = "gradient" if math.isfinite(row["loss"]) else "loss"
                    raise FloatingPointError(
                        f"The {what} is no longer finite at step {step}. Lower the learning rate, for example "
                        f"--set optimizer.lr={recipe.optimizer.lr / 3:.2g}; the last good checkpoint is in "
                        f"{folder}."
                    )
                if log:
                    log.write({"step": step, **row})
                note = f"{row['images_per_second']:.0f} images/s, loss {row['loss']:.3f}"
                if first and not warned and (text := _many_bad(loader, step - first_step, len(train_on))):
                    say(text)
                    warned = True
            update(step, steps, note)
            if stopping:
                save()  # first: who stops a process may not wait for long
            if looking:
                look()
            if stopping:
                distributed.barrier()  # a launcher may end all processes with the first that ends
                if failure is not None:
                    raise failure
                raise Stopped(
                    f"stopped by {stop.signal or 'another process'} at step {step} of {steps}, and saved: continue "
                    f"with `manyviews resume {quote(str(folder))}`."
                )
            if last or time.monotonic() - saved > 60 * recipe.monitor.checkpoint_minutes:
                save()
                saved = time.monotonic()
        bad = sorted(set(chain.from_iterable(distributed.collect(loader.bad))))
        if first:
            write_encoder(folder, method.kept_encoder, recipe, step)
            summary = {
                "images": len(source),
                "steps": steps,
                "seconds": before + time.monotonic() - begun,
                "device": str(device),
                "bad_images": len(bad),
                "bad": bad[:100],
                "last": row | {f"monitor/{k}": v for k, v in numbers.items()},
            }
            checkpoint.write_text(folder / files.SUMMARY, json.dumps(summary, indent=2))
            for where, reason in bad[:5]:
                say(f"Skipped {where}: {reason}")
            if len(bad) > 5:
                say(f"Skipped {len(bad) - 5} more images: see {folder / files.SUMMARY}")
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
    images = len(monitor.hold_out(source, recipe.data.holdout)[0])
    part = batch // (world * recipe.step.accumulate)
    if part < 2:
        raise UserError("A part of a batch must hold at least 2 images: raise --set data.batch_size.")
    if images < batch:
        share = world * recipe.step.accumulate
        fits = images >= 2 * share
        fewer = f", or --set data.batch_size={share * 2 ** int(math.log2(images // share))}" if fits else ""
        raise UserError(
            f"{source.name} has {images} images to train on, fewer than a batch of {batch}: give more images{fewer}."
        )
    for regularizer in recipe.regularizers:
        regularizer.check_batch(batch, world * recipe.step.accumulate)
    for name in recipe.monitor.loggers:
        if importlib.util.find_spec(name) is None:
            raise missing(name)


def check_sizes(method: Method, recipe: Recipe) -> None:
    """Raises UserError when the encoder does not take images of the views' sizes and of the test size."""
    encoder = method.kept_encoder
    kinds = [*method.views, *(v for r in recipe.regularizers for v in r.views(method))]
    for size in sorted({recipe.test_size, *(kind.size for kind in kinds if isinstance(kind, Crop))}):
        with frozen(encoder):
            try:
                found = encoder(torch.zeros(1, 3, size, size))
            except UserError:
                raise
            except Exception as e:  # timm's models assert, or fail somewhere inside
                raise UserError(
                    f"{encoder.name} does not take images of {size} pixels ({printable(e, 120)}): choose another "
                    "backbone, or other sizes of the views and --set test_size."
                ) from None
        if not isinstance(found, Tensor) or found.shape != (1, encoder.embed_dim):
            raise UserError(
                f"{encoder.name} does not give {encoder.embed_dim} features for each image: leave its settings for "
                "pooling as they are."
            )


def _loader(recipe: Recipe, source: Source, device: torch.device) -> Loader:
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
            device=device,
            progress=update,
        )


def _batches(loader: Loader, step: int, steps: int, device: torch.device) -> Generator[tuple[Batch, float]]:
    """Those of all steps from `step` on, across epochs, as `feed` gives them."""
    while step < steps:
        epoch, start = divmod(step, loader.steps_per_epoch)
        for batch in feed(loader.batches(epoch, start), device):
            yield batch
            step += 1
            if step == steps:
                return


def _many_bad(loader: Loader, steps: int, images: int) -> str | None:
    """A warning, if more than about one in a hundred of the images that this process has met are bad, and ten."""
    met = images if loader.in_memory else min(images, steps * loader.batch)
    bad = loader.bad
    if len(bad) <= max(10, met / 100):
        return None
    where, reason = bad[0]
    return f"Warning: {len(bad)} images could not be used so far, such as {where}: {reason}"


def _parts(canvases: Batch, method: Method, recipe: Recipe, at: Progress) -> list[Callable[[], Views]]:
    def views(part: Batch) -> Views:
        data = recipe.data
        return Views(
            part,
            method.views,
            recipe.seed,
            at.epoch,
            data.mean,
            data.std,
            backward=recipe.step.backward,
            progress=at.progress,
        )

    return [partial(views, part) for part in canvases.chunk(recipe.step.accumulate)]


def _momentum(method: Method, at: Progress) -> dict[str, float]:
    """Of the method's moving average, if it has one."""
    target = next((m for m in method.modules() if isinstance(m, EMA)), None)
    return {} if target is None else {"momentum": value(target.momentum, at)}


def _restore(
    folder: Path, method: Method, optimizer: torch.optim.Optimizer, identity: dict[str, Any], loader: Loader
) -> tuple[int, float]:
    """The step to continue from and the seconds spent so far: those of the checkpoint, if there is one."""
    path = folder / files.CHECKPOINT
    if not path.exists():
        return 0, 0.0
    facts = checkpoint.load(path, method, optimizer)
    if any(facts[k] != identity[k] for k in ("images", "steps")):
        raise UserError(
            f"The run in {folder} was started on {facts['images']} images for {facts['steps']} steps, and now there "
            f"are {identity['images']} images for {identity['steps']} steps: restore the images, or start a new run."
        )
    names = identity.get("names")
    if facts.get("names", names) != names:
        raise UserError(
            f"The run in {folder} was started on images of other names, some of which it held out: restore them, or "
            "start a new run."
        )
    processes = facts.get("processes", identity["processes"])
    begun = int(facts["step"]) % loader.steps_per_epoch > 0
    if distributed.rank() == 0 and begun and loader.by_rank and processes != identity["processes"]:
        say(
            f"Warning: the run had {processes} processes, which share these images in another order: in this epoch "
            "some come twice, and others not at all."
        )
    return int(facts["step"]), float(facts["seconds"])


def _noise(seed: int, step: int, rank: int) -> int:
    """A seed of 32 bits, which is all that PyTorch's generator on the CPU takes of a larger one."""
    return int.from_bytes(blake2b(f"{seed} {step} {rank}".encode(), digest_size=4).digest(), "little")


def _logged(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The last numbers of training and of observing, for a run that was killed between its last step and its end."""
    row, numbers = dict[str, float](), dict[str, float]()
    for found in files.rows(folder):
        seen = {k.removeprefix("monitor/"): v for k, v in found.items() if k.startswith("monitor/")}
        numbers = seen or numbers
        row = {k: v for k, v in found.items() if k != "step"} if "loss" in found else row
    return row, numbers


def say(text: str) -> None:
    """One line to standard error. The text may hold names that others chose."""
    print(printable(text), file=sys.stderr, flush=True)


@dataclass
class _Meter:
    """Sums of the loss terms since the last log line, kept on the device: reading them is the only synchronization."""

    batch: int
    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def add(self, terms: dict[str, Tensor], norm: Tensor) -> None:
        for name, x in (terms | {"grad_norm": norm}).items():
            self.sums[name] = self.sums[name] + x if name in self.sums else x
        self.count += 1

    def read(self) -> dict[str, float]:
        """Means over the steps and ranks since the last reading, and this rank's speed.

        That is images per second, and the share of the time in which it waited for images; views are made in the step.
        """
        names = list(self.sums)
        means = (distributed.mean(torch.stack([self.sums[n].float() for n in names])) / self.count).tolist()
        seconds = max(1e-9, time.monotonic() - self.since)
        speed = {"images_per_second": self.count * self.batch / seconds, "data_wait": min(1.0, self.waited / seconds)}
        found = dict(zip(names, means, strict=True))
        norm = found.pop("grad_norm")
        self.sums.clear()
        self.count, self.waited, self.since = 0, 0.0, time.monotonic()
        terms = {f"loss/{k}": v for k, v in found.items()} if len(found) > 1 else {}
        return {"loss": sum(found.values())} | terms | {"grad_norm": norm} | speed

    def finite(self) -> bool:
        """Whether everything since the last log line is finite."""
        return not self.sums or bool(torch.stack(list(self.sums.values())).isfinite().all())
