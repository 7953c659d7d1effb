"""Numbers about a step that are logged and are no part of its loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from manyviews import distributed

_UNUSED = 0.1  # share of a uniform prototype's mass below which one counts as unused


class Watch(nn.Module):
    """What a method hands out to be watched: it has one as a part, and calls it with tensors of the step.

    Nothing is measured until somebody turns it on, as training does. Sums stay on the device, and only `read` waits for
    it. A watch has neither parameters nor a state, and no gradient passes through it.

    Attributes:
        on: whether the steps count. The use of prototypes is added up over all of them, at the cost of one mean.
        due: whether this step is measured in full, as those that are about to be logged are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on = self.due = False
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._use: dict[str, tuple[Tensor, Tensor]] = {}  # mass of each prototype, and rows that it comes from

    @torch.no_grad()
    def distributions(
        self, probs: Tensor, scores: Tensor, temperature: float, *, mask: Tensor | None = None, name: str = ""
    ) -> None:
        """A teacher's distributions over prototypes, and the student's scores that should give them.

        DINO (Caron et al. 2021, figure 7) watches the first two: where both training signals fail, the divergence is
        zero.

        `teacher_entropy`: entropy of a distribution over log k: 1 is uniform, 0 is one prototype. `kl`: divergence of
        the student from the teacher, in nats. `perplexity`: prototypes in use, exp of the entropy of the mean
        distribution since the last reading. `unused`: share of prototypes with less than a tenth of a uniform one's
        mass. `information`: entropy of this step's mean distribution less the mean entropy, in nats: 0 if all images
        get the same distribution, which is collapse; at most the logarithm of the images of a process.

        Args:
            probs: `... k`, rows that sum to 1.
            scores: `... k`, before the softmax.
            temperature: the student's.
            mask: bool, `...`, the rows that count; all if None.
            name: what the numbers' names begin with.
        """
        if self.on:
            with torch.autocast(probs.device.type, enabled=False):  # a product of two matrices would lose its digits
                self._distributions(probs, scores, temperature, mask, name)

    def _distributions(self, probs: Tensor, scores: Tensor, temperature: float, mask: Tensor | None, name: str) -> None:
        p, k = probs.detach().float().flatten(0, -2), probs.shape[-1]
        weight = torch.ones(len(p), device=p.device) if mask is None else mask.detach().flatten().float()
        use, rows = self._use.get(name, (0.0, 0.0))
        self._use[name] = use + weight @ p, rows + weight.sum()
        if self.due:
            logs = (scores.detach().float().flatten(0, -2) / temperature).log_softmax(-1)
            share, own = weight / weight.sum().clamp(min=1), torch.xlogy(p, p).sum(-1)
            self._add(f"{name}teacher_entropy", -(share @ own) / math.log(k))
            self._add(f"{name}kl", share @ (own - (p * logs).sum(-1)))
            # Of this step alone: a teacher that moves has used more prototypes over many than it tells images apart by.
            mean = share @ p
            self._add(f"{name}information", (share @ own - torch.xlogy(mean, mean).sum()).clamp(min=0))

    @torch.no_grad()
    def targets(self, x: Tensor) -> None:
        """Features that a method predicts, `b n d`. `target_spread`: their deviation over all patches of the batch.

        The mean over features, each patch standardized: 1 if they differ as much as can be, 0 if all are the same.
        """
        if self.due:
            standardized = torch.nn.functional.layer_norm(x.detach().float().flatten(0, -2), x.shape[-1:])
            self._add("target_spread", standardized.std(0, correction=0).mean())

    @torch.no_grad()
    def note(self, name: str, value: Callable[[], Tensor]) -> None:
        """A scalar of the step under a name, computed if it is due."""
        if self.due:
            self._add(name, value().detach().float())

    def read(self) -> dict[str, float]:
        """The numbers since the last reading, means over steps and ranks. Every rank calls it."""
        found = {}
        if self._sums:
            values = distributed.mean(torch.stack([x / self._counts[name] for name, x in self._sums.items()]))
            found = dict(zip(self._sums, values.tolist(), strict=True))
        for name, (use, rows) in self._use.items():
            total, count = distributed.mean(use), distributed.mean(rows)
            if not count > 0:  # no patch was hidden
                for number in ("teacher_entropy", "kl", "information"):
                    found.pop(f"{name}{number}", None)
                continue
            mean = total / count
            entropy = -torch.xlogy(mean, mean).sum()
            unused = (mean < _UNUSED / len(mean)).float().mean()
            found[f"{name}perplexity"], found[f"{name}unused"] = torch.stack([entropy.exp(), unused]).tolist()
        self._sums.clear()
        self._counts.clear()
        self._use.clear()
        return found

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1
