"""A run in progress: everything that happens around its steps."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from manyviews import checkpoint, distributed, machine
from manyviews.backbones import Encoder, protect, recompute_blocks
from manyviews.data import Loader, Source
from manyviews.engine import alarms, monitor, optim, settings, sharding
from manyviews.engine.build import stage_of, start_encoder, write_encoder
from manyviews.engine.feed import feed
from manyviews.engine.folder import SUMMARY, SUSPECTS, RunFolder, check_progress
from manyviews.engine.log import Log, Row
from manyviews.engine.meter import Meter
from manyviews.engine.plan import Early, Plan
from manyviews.engine.precision import Scaling, explain, resolve
from manyviews.engine.stopping import Lost, Request, Stopped, watch
from manyviews.errors import Unwritten, UserError, say
from manyviews.evaluation.features import check_finite, extract_all
from manyviews.heads import Watch
from manyviews.methods import Method
from manyviews.progress import Update, progress
from manyviews.regularizers import canvas_size
from manyviews.schedules import value
from manyviews.settings import Part, Recipe, parts, to_json
from manyviews.targets import EMA
from manyviews.threads import Threads, threads_of
from manyviews.types import Batch, Progress
from manyviews.views import Views

Draw = Callable[[Method, Batch, Recipe, Path, int], None]
"""Draws a method's picture of a few images of a run at a step, into a file."""

_LEFT_OUT = 10  # batches of a run that are left out, at most


@contextlib.contextmanager
def begin(
    method: Method,
    part: Part,
    source: Source,
    folder: RunFolder,
    since: float | None = None,
    old: Source | None = None,
    spent: float | None = None,
) -> Iterator[Training]:
    """Prepare a part of a run, from the run's checkpoint if there is one: see `manyviews.engine.loop.train`.

    `spent` are the seconds of the run so far, if it goes back to a checkpoint that knows of fewer.
    """
    recipe = part.recipe
    since = time.monotonic() if since is None else since
    device, first = distributed.start(), distributed.rank() == 0
    for line in (machine.limits(device), explain(recipe.step.precision, device)) if first else ():
        if line is not None:
            say(line)
    with contextlib.ExitStack() as stack:
        stack.push(partial(_explain, folder))
        if first:
            stack.enter_context(folder.lock())
            folder.clean()
            folder.mend()
        train, held_out = monitor.hold_out(source, recipe.data.holdout)
        loader = _loader(method, recipe, source, train, device)
        stack.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
        torch.backends.cudnn.benchmark = True  # shapes are the same in every step
        method.begin(len(loader.source))
        method = method.to(device).to(memory_format=torch.channels_last).train()
        protect(method)
        if recipe.step.sync_batchnorm:
            method = distributed.sync_batchnorm(method, device)
        twin = None
        if recipe.step.shard and distributed.world_size() > 1:
            distributed.broadcast(method.state_dict().values())
            twin = sharding.Twin(method)
            sharding.shard(method)
        if recipe.step.recompute_blocks:
            for encoder in (m for m in method.modules() if isinstance(m, Encoder)):
                if any(p.requires_grad for p in encoder.parameters()):
                    recompute_blocks(encoder.model)
        optimizer = optim.build(method, recipe.optimizer, device, recipe.adaptation)
        steps = max(1, round(recipe.epochs * loader.steps_per_epoch))
        identity: dict[str, Any] = {"images": len(source), "steps": steps, "processes": distributed.world_size()}
        identity["names"] = source.naming  # which decide, too, which images are held out
        scaling = Scaling(device, resolve(recipe.step.precision, device))
        early = folder.facts.get("early") if part.last else None
        plan = Plan(steps, loader.steps_per_epoch, recipe.budget, early and Early(**early))
        step, before, parts_before = _restore(folder, part, method, optimizer, scaling, identity, loader, plan)
        start = Start(step, before if spent is None else spent, parts_before, identity, plan, since)
        method.look(partial(_see, loader.source, device))  # before the broadcast: its finds may be part of the state
        if twin is None:
            distributed.broadcast(method.state_dict().values())
        if recipe.step.compile:
            _compile(method)
        held = monitor.prepare(train, held_out, recipe, loader.size, old) if first else None
        if first and recipe.data.holdout and held is None:
            say("Too few images to hold any out: nothing is monitored while training.")
        stop = stack.enter_context(watch())  # a signal before this point has nothing to save
        begun = start.before[0] + start.step
        again = part.number if start.step == 0 else None
        log = stack.enter_context(Log(folder, begun, recipe.monitor.loggers, again)) if first else None
        update = stack.enter_context(progress(f"{part.words}: pretrain".removeprefix(": "), quiet=not first))
        threads = stack.enter_context(threads_of(device))
        run = Training(
            method, optimizer, scaling, device, part, loader, held, folder, start, stop, log, update, threads, twin
        )
        stack.push(run.save_after)
        stack.enter_context(contextlib.closing(run.batches))
        yield run


def remaining(recipe: Recipe, folder: RunFolder) -> list[Part]:
    """The parts of a run that are not over, in their order."""
    return parts(recipe)[stage_of(folder) :]


class RolledBack(Exception):
    """The run goes back to its last good checkpoint.

    Attributes:
        spent: seconds of the run so far.
    """

    def __init__(self, spent: float) -> None:
        super().__init__()
        self.spent = spent


class Start(NamedTuple):
    """Where a part of a run starts or continues.

    Attributes:
        step: optimizer steps of this part taken before.
        seconds: time spent before.
        before: optimizer steps and epochs of the parts before.
        identity: what a checkpoint must agree with: numbers of images, steps and processes, and the images' names.
        plan: how far it goes.
        since: when the time of the run began to count again, on the monotonic clock.
    """

    step: int
    seconds: float
    before: tuple[int, float]
    identity: dict[str, Any]
    plan: Plan
    since: float


class Training:
    """A part of a run in progress, as `begin` makes it. All ranks call everything; the first one writes the files.

    Attributes:
        method: the method, in training mode on the device.
        optimizer: the optimizer of its parameters.
        scaling: the scaling of the loss.
        device: the device of this rank.
        precision: the number format of the forward passes.
        step: optimizer steps of this part taken so far.
        batches: this rank's batches of the steps to come, and the seconds that each was waited for.
        draw: draws held-out images at each measurement.
    """

    draw: Draw | None = None

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        scaling: Scaling,
        device: torch.device,
        part: Part,
        loader: Loader,
        held: monitor.HeldOut | None,
        folder: RunFolder,
        start: Start,
        stop: Request,
        log: Log | None,
        update: Update,
        threads: Threads,
        twin: sharding.Twin | None,
    ) -> None:
        recipe = part.recipe
        self.method, self.optimizer, self.scaling, self.device = method, optimizer, scaling, device
        self.precision = resolve(recipe.step.precision, device)
        self._part, (self._before, self._epochs_before) = part, start.before
        self._recipe, self._loader, self._held, self._folder, self._start = recipe, loader, held, folder, start
        self._stop, self._log, self._update, self._threads, self._twin = stop, log, update, threads, twin
        self._plan, self._epoch = start.plan, loader.steps_per_epoch
        self._every = max(1, round(recipe.monitor.epochs * self._epoch)) if recipe.monitor.epochs else 0
        self._plan.expect(self._every, self._plan.pause)
        self.step = start.step
        self.batches = _batches(loader, self.step, self._plan, device)
        self._batch: Batch | None = None
        self._failure: Exception | None = None
        self._meter = Meter(recipe.data.batch_size)
        self._saved_at = self._ticked_at = time.monotonic()
        self._ticked, self._paused = self.step, 0.0
        self._saved_step = -1
        rows = folder.rows
        self._seen = monitor.measurements(rows)
        self._watches = [m for m in method.modules() if isinstance(m, Watch)]
        self._first: list[Tensor] = optim.first_layers(method)
        self._peak: Tensor | None = None
        self._alarms = alarms.OfSteps(rows)
        # A run that was stopped before an observation makes it now.
        stage = part.number + 1
        here = [row for row in rows if row.get("step") == self._steps and row.get("stage", stage) == stage]
        seen = any(key.startswith("monitor/") for row in here for key in row)
        self._due = distributed.share(self.step == 0 or (not seen and self._monitors(self.step)))
        self._recent: list[_Taken] = []
        self._left_out = frozenset(folder.facts.get("left_out", ()))
        self._kept = None
        if held is not None and folder.start.exists():
            self._kept = monitor.Kept(start_encoder(folder), held, recipe, device)
        # A run that was killed between its last step and its end has logged everything already.
        self._row, self._numbers = _logged(folder) if self.step >= self._plan.last else ({}, {})
        self._note, self._warned, self._torn = "", False, False
        encoders = [m for m in method.modules() if isinstance(m, Encoder)]
        learning = [(e, [p for p in e.parameters() if p.requires_grad]) for e in encoders]
        self._learning = [(encoder, parameters) for encoder, parameters in learning if parameters]

    def steps(self) -> Iterator[tuple[Progress, Batch]]:
        """The progress and this rank's batch, on the device, of every step to come."""
        if self._due:
            self._monitor()
        self._fetch()
        self._ticked_at, self._paused = time.monotonic(), 0.0
        if distributed.anywhere(self._failure is not None):
            raise self._failure or UserError("Another process cannot read its images.")
        self._tell(self._threads.begin())
        while self._batch is not None:
            # Dropout and the like draw from the step alone, so a resumed run draws what an uninterrupted one did.
            # `torch.manual_seed` formats a stack trace at each call for a GPU that is not in use.
            seed = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
            seed(_noise(self._recipe.seed, self.step, distributed.rank()))
            at = self._plan.at(self.step)
            self._adapt(at)
            if self._steps in self._left_out:
                self._leave_out(at)
                continue
            for measures in self._watches:
                measures.on, measures.due = True, self._logs(self.step + 1)
            yield at, self._batch

    def _adapt(self, at: Progress) -> None:
        """Let the encoders wait or learn, as the adaptation wants it, and their moving averages with them."""
        held = [encoder.held for encoder, _ in self._learning]
        for encoder, parameters in self._learning:
            self._recipe.adaptation.before_step(encoder, parameters, at)
        if held != [encoder.held for encoder, _ in self._learning]:
            for part in self.method.modules():
                if isinstance(part, EMA):
                    part.train(part.training)

    def views(self, batch: Batch, at: Progress) -> list[Callable[[], Views]]:
        """Makers of the views of each accumulated part of a batch."""
        recipe = self._recipe
        data = recipe.data

        def make(part: Batch) -> Views:
            return Views(
                part,
                self.method.views,
                recipe.seed,
                at.epoch,
                data.mean,
                data.std,
                backward=recipe.step.backward,
                progress=at.progress,
            )

        return [partial(make, part) for part in batch.chunk(recipe.step.accumulate)]

    def watch_gradient(self) -> None:
        """Measure the gradient of the first layer, before it is clipped: its spikes announce divergence."""
        self._peak = optim.largest(self._first)

    def after(self, at: Progress, terms: dict[str, Tensor], norm: Tensor, lr: float, moved: bool) -> None:
        """Finish a step: fetch the next batch, log, monitor, save and stop when it is time to.

        Args:
            at: the progress before the step.
            terms: value of each loss term, scalars on the device.
            norm: norm of the whole gradient, a scalar on the device.
            lr: learning rate.
            moved: whether the parameters moved. Otherwise the gradient was not finite in float16, or the batch is left
                out.
        """
        assert self._batch is not None
        self._recent.append(_Taken(self._steps, terms | {"norm of the gradient": norm}, self._peak, self._batch.index))
        if moved:
            self._meter.add(terms, norm, self._peak)
        elif self.scaling.factor < 1:
            self._not_finite(self._recent[-1], "loss or its gradient")
        self.step += 1
        self._tell(self._threads.step())
        self._tick()
        last, logged = self.step >= self._plan.last, self._logs(self.step)
        if logged:  # before the next batch is waited for: a signal in that time saves a run whose log is complete
            self._write_row(at, lr)
        if last:
            self._batch = None
        elif not self._stop:
            self._fetch()
        stopping = distributed.anywhere(bool(self._stop) or self._failure is not None)
        monitoring = self._monitors(self.step)
        if stopping and not logged:
            self._write_row(at, lr)
        self._update(self.step, self._plan.last, self._words)
        if monitoring and not stopping:
            self._monitor()
            stopping = distributed.anywhere(bool(self._stop))
        if stopping:  # without an observation: whoever stops a process may not wait for long, and `resume` makes it
            self.save()
            distributed.barrier()  # a launcher may end all processes with the first that ends
            raise self._failure or self._stopped()
        due = time.monotonic() - self._saved_at > 60 * self._recipe.monitor.checkpoint_minutes
        if last or (due if self._twin is None else distributed.anywhere(due)):  # each rank writes its part of weights
            self.save()
            self._saved_at = time.monotonic()

    def _stopped(self) -> Stopped:
        return Stopped(
            f"stopped by {self._stop.signal or 'another process'} at step {self._steps} of "
            f"{self._before + self._plan.last}{f' ({self._part.words})' * (self._part.count > 1)}, and saved: continue "
            f"with `manyviews resume {quote(str(self._folder.path))}`."
        )

    def save(self) -> None:
        """Write a checkpoint, unless this step has one or the weights are not finite: the last good one stays."""
        saves = bool(self._log) and self.step != self._saved_step and self._meter.finite()
        if saves if self._twin is None else distributed.share(saves):
            facts = self._start.identity | {"step": self.step, "seconds": self._seconds()} | self._plan.facts()
            facts["recipe"] = to_json(self._folder.recipe)
            if self._part.count > 1:
                here = {"stage": self._part.number, "epochs": self.step / self._epoch}
                facts |= here | {"before": self._start.before}
            if self.scaling.active:
                facts["scaling"] = self.scaling.state()
            start = time.monotonic()
            if self._log:
                self._log.sync()
            checkpoint.save(self._folder.checkpoint, self.method, self.optimizer, facts, self._folder.previous)
            self._saved_step = self.step
            self._rest(time.monotonic() - start)

    def _saving(self) -> contextlib.AbstractContextManager[None]:
        """Inside, a signal saves at once. Spread weights, which all processes save together, wait for the end."""
        return self._stop.saving(self.save) if self._twin is None else contextlib.nullcontext()

    def save_after(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Save when a disk or a network fails: the weights are as sound as before."""
        if not isinstance(error, OSError):
            return
        # A checkpoint may not be ahead of the log, and spread weights are saved by all ranks, of which one failed.
        if not self._torn and self._twin is None:
            with contextlib.suppress(OSError):  # the disk that failed, probably
                self.save()
        if self._log:
            text = str(error).removesuffix(".")
            resumed = f"continue with `manyviews resume {quote(str(self._folder.path))}`"
            raise Unwritten(f"{text}. {self._good}: {resumed}.", error) from error

    @property
    def _good(self) -> str:
        """A sentence on the last good checkpoint."""
        if not self._folder.checkpoint.exists():
            return f"There is no checkpoint in {self._folder.path} yet"
        step = self._start.step if self._saved_step < 0 else self._saved_step
        of = f", of step {self._before + step}," if self._log else ""
        return f"The last good checkpoint{of} is in {self._folder.path}"

    @property
    def _steps(self) -> int:
        """Optimizer steps of the whole run taken so far."""
        return self._before + self.step

    def finish(self) -> None:
        """End a part that has taken its last step; after the last one, write the encoder and the summary of the run."""
        if not self._part.last:
            distributed.barrier()  # the next one begins from the checkpoint that the first process has written
            if distributed.anywhere(bool(self._stop)):  # the signal came while it was written
                raise self._stopped()
            return
        bad = sorted(set(chain.from_iterable(distributed.collect(self._loader.bad))))
        method = self._whole()
        if self._log:
            write_encoder(self._folder, method.kept_encoder, self._recipe, self._steps)
            self._folder.write_summary(
                {
                    "images": self._start.identity["images"],
                    "steps": self._steps,
                    "epochs": self._epochs,
                    "seconds": self._seconds(),
                    "device": str(self.device),
                    "precision": self.precision,
                    **({"skipped_steps": self.scaling.skipped} if self.scaling.active else {}),
                    **({"left_out": sorted(self._left_out)} if self._left_out else {}),
                    "bad_images": len(bad),
                    "bad": bad[:100],
                    "last": self._row | {f"monitor/{k}": v for k, v in self._numbers.items()},
                }
            )
            self._folder.tidy()
            if self.scaling.skipped:
                say(
                    f"{self.scaling.skipped} of {self._steps} steps were skipped, because their gradients were not "
                    "finite in float16; the loss is scaled less after each."
                )
            for where, reason in bad[:5]:
                say(f"Skipped {where}: {reason}")
            if len(bad) > 5:
                say(f"Skipped {len(bad) - 5} more images: see {self._folder.path / SUMMARY}")
        distributed.barrier()

    def _monitors(self, step: int) -> bool:
        """Whether the encoder is measured after so many steps."""
        return step >= self._plan.last or (self._every > 0 and step % self._every == 0)

    def _logs(self, step: int) -> bool:
        """Whether a line is logged after so many steps."""
        return step % self._recipe.monitor.steps == 0 or self._monitors(step)

    def _rest(self, seconds: float) -> None:
        """So many seconds passed without training."""
        self._meter.since += seconds
        self._paused += seconds
        self._threads.restart()

    def _tick(self) -> None:
        """With a budget, plan anew how many steps there will be."""
        alone = distributed.world_size() == 1
        # Several processes wait for each other here: ever more seldom at first, as the budget may be of a few steps.
        due = self.step % self._recipe.monitor.steps == 0 or self.step.bit_count() == 1
        if not self._plan.timed or not (alone or due):
            return
        now = time.monotonic()
        seconds = now - self._ticked_at - self._paused
        self._plan.tick(self.step, self._seconds(), seconds / (self.step - self._ticked), seconds)
        self._plan.agree(distributed.share(self._plan.last))
        self._ticked, self._ticked_at, self._paused = self.step, now, 0.0

    def _tell(self, text: str | None) -> None:
        """Say what changed about the threads. Each process of several chooses its own, and the first one speaks."""
        if text is not None and distributed.rank() == 0:
            say(text)

    def _fetch(self) -> None:
        """Take the next batch. The ranks vote after it, so that none begins a step that another one cannot."""
        try:
            with self._saving():
                self._batch, waited = next(self.batches, (None, 0.0))
            self._meter.waited += waited
        except Exception as error:  # of a disk, a network, a source
            self._failure = error

    def _write_row(self, at: Progress, lr: float) -> None:
        scaled = {}
        if self.scaling.active:
            scaled = {"loss_scale": self.scaling.factor, "skipped_steps": self.scaling.skipped}
        if not self._meter.count:  # nothing but skipped steps
            if self._log and scaled:
                self._write(scaled)
            self._recent.clear()
            return
        row = self._meter.read() | {"lr": lr, "epoch": self._epochs} | _momentum(self.method, at) | scaled
        for measures in self._watches:
            row |= {f"watch/{name}": x for name, x in measures.read().items()}
        self._row = row
        if not math.isfinite(row["loss"] + row["grad_norm"]):
            at_fault = next((taken for taken in self._recent if not taken.finite), self._recent[-1])
            self._not_finite(at_fault, "gradient" if math.isfinite(row["loss"]) else "loss")
        self._note = _words(row["images_per_second"], row["loss"])
        if self._log:
            self._write(row)
            found = self._alarms.hear(row)
            if self._alarms.jumped:
                taken = max(self._recent, key=lambda taken: -1.0 if taken.peak is None else float(taken.peak))
                where = self._name(taken, "the gradient of the first layer jumped", self._items(taken))
                found = [*found, f"The images of the batch with that gradient, of step {taken.step}, are in {where}."]
            self._alarm(found)
            if not self._warned and (text := _many_bad(self._loader, self.step - self._start.step)):
                say(text)
                self._warned = True
        self._recent.clear()

    def _not_finite(self, taken: _Taken, what: str) -> NoReturn:
        """Name the images of the first batch that was not finite, and stop or go back."""
        step = distributed.least(taken.step)
        taken = next((t for t in self._recent if t.step == step), taken)
        images = list(chain.from_iterable(distributed.collect(self._items(taken))))
        where = self._name(taken, f"the {what} is not finite", images) if self._log else self._folder.path
        happened = (
            f"The {what} is no longer finite at step {step}: the {len(images)} images of its batch are in {where}"
        )
        # The update of the step before may be the cause as well, unless the checkpoint is of after it.
        good = distributed.share(self._before + (self._start.step if self._saved_step < 0 else self._saved_step))
        cause = {step, max(good, step - 1)} - self._left_out
        if self._recipe.step.not_finite == "rollback" and cause and len(self._left_out | cause) <= _LEFT_OUT:
            if self._log:
                self._folder.write_facts(self._folder.facts | {"left_out": sorted(self._left_out | cause)})
                shown = " and ".join(str(s) for s in sorted(cause))
                say(f"Warning: {happened}. The run goes back and leaves out its batch {shown}. {self._good}.")
            distributed.barrier()
            raise RolledBack(self._seconds())
        tried = f" {len(self._left_out)} batches were left out before." if self._left_out else ""
        precision = "--set step.precision=float32, or " if self.scaling.active else ""
        back = "" if self._left_out else ", or --set step.not_finite=rollback, which leaves out such batches"
        raise FloatingPointError(
            f"{happened}.{tried} Look at them, and try {precision}a lower learning rate, for example --set "
            f"optimizer.lr={self._recipe.optimizer.lr / 3:.2g}{back}. {self._good}."
        )

    def _items(self, taken: _Taken) -> list[str]:
        """The names of this rank's images of a step."""
        return [self._loader.source.where(i) for i in taken.items.tolist()]

    def _name(self, taken: _Taken, why: str, images: Sequence[str]) -> Path:
        """Write the images of a step into the run's folder, and return the file."""
        path = self._folder.path / SUSPECTS
        terms = {name: str(float(x)) for name, x in taken.terms.items()}
        found: list[Any] = []
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
        found = [one for one in found if isinstance(one, dict) and one.get("step") != taken.step]
        entry = {"step": taken.step, "why": why, "terms": terms, "images": list(images)}
        checkpoint.write_text(path, json.dumps([*found, entry], indent=2))
        return path

    def _leave_out(self, at: Progress) -> None:
        """Pass over the batch of a step. Schedules and moving averages go on as after a step skipped in float16."""
        recipe = self._recipe
        lr = optim.schedule(self.optimizer, recipe.optimizer, recipe.data.batch_size, at)
        self.method.after_skip()
        text = f"The batch of step {self._steps} is left out, because of numbers that were not finite."
        say(f"Warning: {text}")
        self._write({"step": self._steps + 1, "alarm": text})  # of the step to come: a checkpoint may have this one
        self._peak = None
        self.after(at, {}, torch.zeros((), device=self.device), lr, moved=False)

    def _words(self) -> str:
        """Speed and loss since the last row of the log, or of that row: whoever shows them asks every few seconds."""
        now = self._meter.now()
        return self._note if now is None else _words(*now)

    def _monitor(self) -> None:
        """Measure the encoder on held-out images, log the numbers, and warn of collapse."""
        method = self._whole()
        if self._log and self._held:
            start = time.monotonic()
            with self._saving():
                self._observe(method.to(self.device), self._held)
            seconds = time.monotonic() - start
            self._plan.expect(self._every, seconds)
            self._rest(seconds)

    def _observe(self, method: Method, held: monitor.HeldOut) -> None:
        if self.draw is not None:
            path = self._folder.plots / "reconstructions.png"
            self.draw(method, held.batch, self._recipe, path, self._steps)
        self._numbers = monitor.measure(method, held, self._recipe, self.device, self._kept)
        self._write({f"monitor/{k}": v for k, v in self._numbers.items()})
        self._seen.append(self._numbers)
        self._alarm(alarms.of_measurements(self._seen))

    def _whole(self) -> Method:
        """The method; if its weights are spread, a whole copy in the first process. All ranks call it."""
        return self.method if self._twin is None else self._twin.follow(self.method)

    def _alarm(self, found: Sequence[str]) -> None:
        for alarm in found:
            self._write({"alarm": alarm})
            say(f"Warning: {alarm}")

    @property
    def _epochs(self) -> float:
        """Epochs of the whole run so far."""
        return self._epochs_before + self.step / self._epoch

    def _write(self, row: Row) -> None:
        """Log a row with its step and, of a run in stages, its stage, counted from 1."""
        if self._log:
            stage = {"stage": self._part.number + 1} if self._part.count > 1 else {}
            self._torn = True  # until the row is whole
            self._log.write({"step": self._steps, **stage, **row})
            self._torn = False

    def _seconds(self) -> float:
        return self._start.seconds + time.monotonic() - self._start.since


class _Taken(NamedTuple):
    """A step since the last line of the log: its terms and its largest gradient on the device, and its images."""

    step: int
    terms: dict[str, Tensor]
    peak: Tensor | None
    items: Tensor

    @property
    def finite(self) -> bool:
        return bool(torch.stack([x.float() for x in self.terms.values()]).isfinite().all())


def _explain(folder: RunFolder, kind: object, error: BaseException | None, trace: object) -> None:
    """Turn the error of a connection that broke into one sentence."""
    which = None if error is None else distributed.lost(error)
    if which is None:
        return
    there = (
        f"the checkpoint in {folder.path} is intact" if folder.checkpoint.exists() else "no checkpoint was written yet"
    )
    raise Lost(
        f"{which}, so process {distributed.rank()} stops too; {there}. Continue with the same number of processes or "
        f"another: `manyviews resume {quote(str(folder.path))}`."
    ) from error


def _words(speed: float, loss: float) -> str:
    return f"{speed:.0f} images/s, loss {loss:.3f}"


def _loader(method: Method, recipe: Recipe, source: Source, train: Source, device: torch.device) -> Loader:
    """The loader of the images to train on, with the columns of which the method's views are made."""
    needed = {column for view in method.views for column in view.needs} - {"pixels", "extent"}
    first, world, canvas = distributed.rank() == 0, distributed.world_size(), canvas_size(method, recipe)
    if first and source.side is not None and source.side != canvas:
        less = source.side < canvas
        what = "views of small parts of an image are blurred" if less else "all are resampled, which takes time"
        say(
            f"Warning: {source.name} holds canvases of {source.side} pixels, where the views can use {canvas}: {what}. "
            f"Prepare them with --canvas {canvas}."
        )
    with progress("decode", quiet=not first) as update:
        loader = Loader(
            train,
            canvas,
            recipe.data.batch_size // world,
            columns=sorted(needed),
            seed=recipe.seed,
            rank=distributed.rank(),
            world_size=world,
            memory=int(recipe.data.memory_gb * 2**30) // world,
            device=device,
            progress=update,
        )
    for note in loader.notes if first else ():
        say(note)
    return loader


def _see(
    source: Source, device: torch.device, network: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """The outputs of a network for all images, on the device of every rank: see `Method.look`."""
    first, cache = distributed.rank() == 0, machine.cache_folder("features")
    with progress("teacher", quiet=not first) as update:
        found = extract_all(
            {"": network},
            source,
            test_size=size,
            mean=mean,
            std=std,
            device=device,
            cache=cache,
            progress=update,
            shared=True,
        )
    rows = torch.empty(0)
    if first:
        seen = found[""]
        check_finite(seen.x)
        rows = seen.x.new_zeros(len(source), seen.x.shape[1])
        rows[seen.index] = seen.x
    shape = distributed.share(tuple(rows.shape))
    rows = rows.to(device) if first else torch.empty(shape, device=device)
    distributed.broadcast([rows])
    return rows


def _compile(method: Method) -> None:
    for module in method.modules():
        if isinstance(module, Encoder):
            module.features = torch.compile(module.features)  # type: ignore[method-assign]


def _batches(loader: Loader, step: int, plan: Plan, device: torch.device) -> Generator[tuple[Batch, float]]:
    """The batches of all steps from `step` on, across epochs, as `feed` gives them."""
    while step < plan.last:
        epoch, start = divmod(step, loader.steps_per_epoch)
        for batch in feed(loader.batches(epoch, start), device):
            yield batch
            step += 1
            if step >= plan.last:
                return


def _many_bad(loader: Loader, steps: int) -> str | None:
    """A warning, if more than ten images, and about one in a hundred that this process has read, are bad."""
    images = len(loader.source)
    met = images if loader.in_memory else min(images, steps * loader.batch)
    bad = loader.bad
    if len(bad) <= max(10, met / 100):
        return None
    where, reason = bad[0]
    return f"Warning: {len(bad)} images could not be used so far, such as {where}: {reason}"


def _momentum(method: Method, at: Progress) -> dict[str, float]:
    """The momentum of the method's moving average, if it has one."""
    target = next((m for m in method.modules() if isinstance(m, EMA)), None)
    return {} if target is None else {"momentum": value(target.momentum, at)}


def _restore(
    folder: RunFolder,
    part: Part,
    method: Method,
    optimizer: torch.optim.Optimizer,
    scaling: Scaling,
    identity: dict[str, Any],
    loader: Loader,
    plan: Plan,
) -> tuple[int, float, tuple[int, float]]:
    """Load the checkpoint, if there is one.

    Returns:
        The step of this part to continue from, the seconds spent so far, and the steps and epochs of the parts before.
    """
    step, seconds, before = 0, 0.0, (0, 0.0)
    latest = folder.latest
    if latest is not None:
        border = part.number > stage_of(folder)
        facts = checkpoint.load(latest, method, None if border and not part.carried else optimizer)
        check_progress(latest, facts)
        settings.compare(folder, facts)
        step, seconds = int(facts["step"]), float(facts["seconds"])
        steps, epochs = facts.get("before", before)
        before = (int(steps), float(epochs))
        scaling.load(facts.get("scaling", {}))
        if border:  # the part before is over
            _check_identity(folder, facts | {"steps": identity["steps"]}, identity)
            return 0, seconds, (before[0] + step, before[1] + float(facts["epochs"]))
        _check_identity(folder, facts, identity)
        plan.resume(step, facts)
        processes = facts.get("processes", identity["processes"])
        within = step % loader.steps_per_epoch > 0
        if distributed.rank() == 0 and within and loader.by_rank and processes != identity["processes"]:
            say(
                f"Warning: the run had {processes} processes, which share these images in another order: in this epoch "
                "some come twice, and others not at all."
            )
    if distributed.anywhere(distributed.share(step) != step):
        raise UserError(f"Not all processes see the checkpoint in {folder.path}: put it where they all do.")
    return step, seconds, before


def _check_identity(folder: RunFolder, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UserError when a checkpoint is of other images than there are now."""
    if "images" not in saved:  # the weights of another run, from which this one starts
        return
    if any(saved[k] != now[k] for k in ("images", "steps")):
        raise UserError(
            f"The run in {folder.path} was started on {saved['images']} images for {saved['steps']} steps, and now "
            f"there are {now['images']} images for {now['steps']} steps: restore the images, or start a new run."
        )
    names = now.get("names")
    if saved.get("names", names) != names:
        raise UserError(
            f"The run in {folder.path} was started on images of other names, or in another order: restore them, give "
            "their new place as --data, or start a new run."
        )


def _noise(seed: int, step: int, rank: int) -> int:
    """A seed of 32 bits: PyTorch's generator on the CPU uses no more of a larger one."""
    return int.from_bytes(blake2b(f"{seed} {step} {rank}".encode(), digest_size=4).digest(), "little")


def _logged(folder: RunFolder) -> tuple[dict[str, float], dict[str, float]]:
    """The last numbers of training and of monitoring in the log."""
    row, numbers = dict[str, float](), dict[str, float]()
    for found in folder.rows:
        seen = {k.removeprefix("monitor/"): v for k, v in found.items() if k.startswith("monitor/")}
        numbers = seen or numbers
        row = {k: v for k, v in found.items() if k not in ("step", "stage")} if "loss" in found else row
    return row, numbers
