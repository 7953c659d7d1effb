"""Which strategy: by number of images, distance of the domain, and time; climbed only as far as it helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from manyviews.evaluation.knn import knn
from manyviews.progress import duration
from manyviews.tuning.pace import Pace
from manyviews.tuning.problem import Candidate, Problem
from manyviews.tuning.strategies import Strategy

SCARCE, AMPLE = 10, 200
"""Training images of a class, below which an encoder mostly stays, and from which all of it may learn at once."""

NEAR, FAR = 0.85, 0.6
"""Share of what chance leaves that k-NN gets right, from which the encoder knows the domain, and below which it does
not."""

_LEAST = 0.25  # share of its time that a strategy must get


@dataclass(frozen=True, eq=False)
class Climb:
    """What was tried, and why it ended.

    Attributes:
        best: the candidate that is kept.
        tried: all of them, in order.
        why: sentences for people.
    """

    best: Candidate
    tried: tuple[Candidate, ...]
    why: tuple[str, ...]


def climb(
    problem: Problem,
    strategies: Mapping[str, Strategy],
    pace: Pace,
    tell: Callable[[str], object] = lambda text: None,
) -> Climb:
    """Climb the ladder: heads, low-rank matrices, the last blocks, everything slowly, everything.

    A rung must be better than the best before it on validation images by at least the standard error of the
    difference. The first rung above the heads that is not ends the climb, unless the encoder hardly knows the domain:
    then all rungs of the plan are tried. The result is never below `linear` on validation images.

    Args:
        problem: what to learn.
        strategies: all strategies, by name.
        pace: speed of this machine.
        tell: is told each sentence when it is known.
    """
    known = problem.task.frozen
    y, n, classes = known.val_y.cpu(), len(known.train_y), known.classes
    k = max(1, min(20, n // classes // 2))
    accuracy = knn(known.train_x, known.train_y, known.val_x, known.val_y, ks=(k,), classes=classes)
    share = max(0.0, (next(iter(accuracy.weighted.values())) - 1 / classes) / (1 - 1 / classes))
    rungs, words = plan(n / classes, share, problem.encoder.is_transformer)
    why: list[str] = []

    def say(text: str) -> None:
        why.append(text)
        tell(text)

    say(words)
    best = strategies["linear"].run(problem)
    tried = [best]
    say(f"linear: {_percent(best)} of {len(y)} validation images.")
    for name in rungs:
        strategy = strategies[name]
        most = pace.most(strategy, n, len(y))
        if problem.left < most:
            if problem.left < _LEAST * most:
                left = duration(max(0.0, problem.left))
                say(f"{name} would take up to {duration(most)}, and {left} are left: it ends here.")
                break
            strategy = strategy.shortened(problem.left / most)
        # Others than a head begin with the best head on the encoder as it came.
        start = max((c for c in tried if c.encoder is problem.encoder), key=lambda c: c.score)
        found = strategy.run(problem, start)
        tried.append(found)
        better, by = gain(found.logits, best.logits, y, problem.balance.way != "none")
        words = f"{name}: {_percent(found)} in {duration(found.seconds)}"
        if better and found.score > best.score:
            best = found
            say(f"{words}, {by:+d} images: kept.")
            continue
        ends = name != "mlp" and share >= FAR
        say(f"{words}, {by:+d} images: no more than chance would give{', so it ends here.' if ends else '.'}")
        if ends:
            break
    return Climb(best, tuple(tried), tuple(why))


def plan(per_class: float, share: float, transformer: bool) -> tuple[list[str], str]:
    """The rungs above `linear`, and why.

    Args:
        per_class: training images of a class, on average.
        share: share of what chance leaves that k-NN gets right.
        transformer: whether the encoder is one: low-rank matrices save little in a convolutional network.
    """
    domain = (
        "knows this domain" if share >= NEAR else "knows this domain in part" if share >= FAR else "hardly knows it"
    )
    rungs = ["mlp"]
    if transformer and (per_class >= SCARCE or share < NEAR):
        rungs.append("lora")
    if per_class >= SCARCE or share < FAR:
        rungs += ["unfreeze", "lpft"] if share >= FAR or not transformer else ["lpft"]
    if per_class >= AMPLE or (per_class >= SCARCE and share < FAR):
        rungs.append("finetune")
    text = (
        f"{per_class:.0f} training images a class, and k-NN gets {100 * share:.0f} % of what chance leaves: the "
        f"encoder {domain}. The ladder is linear, {', '.join(rungs)}."
    )
    return rungs, text


def gain(ours: Tensor, theirs: Tensor, y: Tensor, balanced: bool = False) -> tuple[bool, int]:
    """Whether accuracy is better by at least the standard error of the difference, and how many more images are right.

    Args:
        ours: logits, `v classes`.
        theirs: logits of the same images.
        y: int64, `v`, labels.
        balanced: whether accuracy is the mean over classes.
    """
    difference = (ours.argmax(1) == y).double() - (theirs.argmax(1) == y).double()
    weight = 1 / y.bincount().double()[y] if balanced else torch.ones(len(y), dtype=torch.float64)
    # Images that both get right or wrong do not vary: the variance of the sum is at most the sum of the squares.
    total, deviation = float((weight * difference).sum()), float((weight * difference).square().sum()) ** 0.5
    return total > 0 and total >= deviation - 1e-9, int(difference.sum())


def _percent(found: Candidate) -> str:
    return f"{100 * found.score.accuracy:.1f} %"
