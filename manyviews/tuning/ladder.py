"""Which strategy: by number of images, distance of the domain, and time; climbed only as far as it helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from manyviews.errors import UserError
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


Run = Callable[[Strategy, Problem, Candidate | None], Candidate]
"""Runs a strategy on a problem, beginning with a candidate."""


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
    run: Run = lambda strategy, problem, before: strategy.run(problem, before),
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
        run: runs a strategy, or remembers what it found: see `Kept`.
    """
    known = problem.task.frozen
    y, n = known.val_y.cpu(), len(known.train_y)
    per_class, share, counted = problem.goal.known(known)
    rungs, words = plan(per_class, share, problem.encoder.is_transformer, counted)
    why: list[str] = []

    def say(text: str) -> None:
        why.append(text)
        tell(text)

    say(words)
    best = run(strategies["linear"], problem, None)
    tried = [best]
    say(f"linear: {_percent(problem, best)} of {len(y)} validation images.")
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
        try:
            found = run(strategy, problem, start)
        except UserError as error:  # such as blocks of a network that does not tell which it has
            say(f"{name} is left out: {error}")
            continue
        tried.append(found)
        better, by = problem.goal.gain(found.logits, best.logits, y)
        words = f"{name}: {_percent(problem, found)} in {duration(found.seconds)}"
        if better and found.score > best.score:
            best = found
            say(f"{words}, {by}: kept.")
            continue
        ends = name != "mlp" and share >= FAR
        say(f"{words}, {by}: no more than chance would give{', so it ends here.' if ends else '.'}")
        if ends:
            break
    return Climb(best, tuple(tried), tuple(why))


def plan(per_class: float, share: float, transformer: bool, counted: str = "") -> tuple[list[str], str]:
    """The rungs above `linear`, and why.

    Args:
        per_class: training images of a class, on average.
        share: share of what chance leaves that k-NN gets right.
        transformer: whether the encoder is one: low-rank matrices save little in a convolutional network.
        counted: the images in words.
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
    counted = counted or f"{per_class:.0f} training images a class"
    text = (
        f"{counted}, and k-NN gets {100 * share:.0f} % of what chance leaves: the encoder {domain}. The "
        f"ladder is linear, {', '.join(rungs)}."
    )
    return rungs, text


def _percent(problem: Problem, found: Candidate) -> str:
    metric = problem.goal.metric
    return f"{100 * found.score.value:.1f} %{'' if metric == 'accuracy' else f' {metric}'}"
