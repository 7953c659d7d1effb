"""Running means of the loss terms, and the speed of training."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from manyviews import distributed


@dataclass
class Meter:
    """Sums of the loss terms since the last log line.

    The sums stay on the device: only reading them makes the host wait for it.

    Attributes:
        batch: images per step, over all ranks.
        waited: seconds in which the host waited for images.
        since: start of the time that counts as training, on the monotonic clock.
        peak: the largest gradient of the first layer since the last log line, a scalar on the device, if it has one.
    """

    batch: int
    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.monotonic)
    peak: Tensor | None = None
    _waited_at: float = field(default_factory=lambda: distributed.waited.seconds)

    def add(self, terms: dict[str, Tensor], norm: Tensor, peak: Tensor | None = None) -> None:
        """Count a step with its loss terms, the norm of its gradient and its largest in the first layer, scalars."""
        if peak is not None:
            self.peak = peak if self.peak is None else torch.maximum(self.peak, peak)
        for name, x in (terms | {"grad_norm": norm}).items():
            self.sums[name] = self.sums[name] + x if name in self.sums else x
        self.count += 1

    def read(self) -> dict[str, float]:
        """Means over the steps and ranks since the last reading, and this rank's speed.

        "images_per_second" includes making the views. "data_wait" is the share of the time in which it waited for
        images. Of several processes there are "wait/0" and so on, the share of the time in which each waited for the
        others, and "slowness", how much longer the slowest, "slowest", took for its own work than the middle one.
        """
        names = list(self.sums)
        means = (distributed.mean(torch.stack([self.sums[n].float() for n in names])) / self.count).tolist()
        seconds = max(1e-9, time.monotonic() - self.since)
        speed: dict[str, float] = {
            "images_per_second": self.count * self.batch / seconds,
            "data_wait": min(1.0, self.waited / seconds),
        }
        if distributed.world_size() > 1:
            speed |= self._of_ranks(seconds)
        found = dict(zip(names, means, strict=True))
        norm = {"grad_norm": found.pop("grad_norm")}
        if self.peak is not None:
            norm["grad_peak"] = float(self.peak)
        self.peak = None
        self.sums.clear()
        self.count, self.waited, self.since = 0, 0.0, time.monotonic()
        terms = {f"loss/{k}": v for k, v in found.items()} if len(found) > 1 else {}
        return {"loss": sum(found.values())} | terms | norm | speed

    def _of_ranks(self, seconds: float) -> dict[str, float]:
        """How long each process waited for the others. Whoever waits least is waited for."""
        at, self._waited_at = self._waited_at, distributed.waited.seconds
        own = torch.tensor([min(seconds, self._waited_at - at), seconds], dtype=torch.float64)
        waited, whole = (distributed.gather(own[None])).T
        busy = (whole - waited).clamp(min=1e-6)
        return {f"wait/{rank}": float(x) for rank, x in enumerate(waited / whole)} | {
            "slowness": float(busy.max() / busy.median()),
            "slowest": int(busy.argmax()),
        }

    def now(self) -> tuple[float, float] | None:
        """Images per second and loss of this rank since the last reading; None right after it. The host waits once."""
        if not self.count:
            return None
        losses = [x.float() for name, x in self.sums.items() if name != "grad_norm"]
        loss = float(torch.stack(losses).sum()) / self.count
        return self.count * self.batch / max(1e-9, time.monotonic() - self.since), loss

    def finite(self) -> bool:
        """Whether everything since the last log line is finite."""
        return not self.sums or bool(torch.stack(list(self.sums.values())).isfinite().all())
