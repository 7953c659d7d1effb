"""The command line: a verb has the same name and the same meaning as its function in Python."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence

# Nothing heavy is imported here: `manyviews --help` answers at once.
import manyviews as mv
from manyviews import launch, machine
from manyviews.cli import _nearest, _parser, evaluate, images, papers, show, train, use
from manyviews.cli._options import DEVICE, check_json
from manyviews.cli._options import settings as _settings
from manyviews.errors import UserError, printable

__all__ = ["GROUPS", "VERBS", "_settings", "main"]

GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Train": {
        "prepare": train.prepare,
        "pretrain": train.pretrain,
        "distill": train.distill,
        "resume": train.resume,
        "finish": train.finish,
        "sweep": train.sweep,
        "reproduce": papers.reproduce,
        "demo": train.demo,
    },
    "Evaluate with labels": {
        "evaluate": evaluate.evaluate,
        "transfer": evaluate.transfer,
        "segment": evaluate.segment,
        "detect": evaluate.detect,
        "propagate": evaluate.propagate,
    },
    "Evaluate without labels": {
        "diagnose": evaluate.diagnose,
        "select": evaluate.select,
    },
    "Use": {
        "choose": use.choose,
        "adapt": use.adapt,
        "predict": use.predict,
        "embed": use.embed,
        "serve": use.serve,
        "export": use.export,
    },
    "Find and choose images": {
        "search": images.search,
        "duplicates": images.duplicates,
        "curate": images.curate,
    },
    "Show": {
        "show": show.show,
        "report": show.report,
        "subspaces": show.subspaces,
        "list": show.list_,
    },
}
"""Every verb, by purpose."""

VERBS: dict[str, Callable[..., None]] = {name: verb for group in GROUPS.values() for name, verb in group.items()}


WITHOUT_DEVICE = {"prepare", "export", "show", "list"}
"""Verbs that compute nothing on a device that could be chosen."""


SHARED = {
    *("pretrain", "distill", "resume", "finish", "sweep", "reproduce"),
    *("evaluate", "embed", "detect"),
}
"""Verbs that share their work between the processes of a launcher. The first process does that of the others alone."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command.

    Exits with 0, with 2 after bad input or when a disk fails, and with 1 after a failure or an interruption.
    """
    args = list(sys.argv[1:] if args is None else args)
    try:
        if args[:1] == ["help"]:
            args = [*args[1:2], "--help"]
        if not args or args[0] in ("-h", "--help"):
            print(_overview())
            sys.exit(0 if args else 2)
        if args[0] == "--version":
            print(f"manyviews {mv.__version__}")
            sys.exit(0)
        if args[0] not in VERBS:
            raise UserError(_nearest.verb(args[0], VERBS))
        _run(args[0], args[1:])
    except UserError as e:
        print(printable(f"manyviews: {e}"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("manyviews: interrupted.", file=sys.stderr)
        sys.exit(1)
    except Exception as e:
        if isinstance(e, OSError):  # a disk or a network that fails while something is read
            where = "" if e.filename is None else f"{e.filename}: "
            print(printable(f"manyviews: {where}{e.strerror or e}."), file=sys.stderr)
            sys.exit(2)
        # These happen to anybody: a stop, numbers that are not finite.
        if isinstance(e, FloatingPointError) or type(e).__name__ in ("Stopped", "Lost", "SafetensorError"):
            print(printable(f"manyviews: {e}"), file=sys.stderr)
        elif (which := _lost(e)) is not None:
            print(printable(f"manyviews: {which}, so this one stops too: start the command again."), file=sys.stderr)
        else:
            traceback.print_exc()
        sys.exit(1)


def _lost(error: Exception) -> str | None:
    """Half a sentence about another process that is gone, if that is the error's cause."""
    if "torch" not in sys.modules:
        return None
    from manyviews import distributed

    return distributed.lost(error)


def _run(name: str, args: Sequence[str]) -> None:
    """Run a verb with the words after it."""
    verb, more = VERBS[name], [] if name in WITHOUT_DEVICE else [DEVICE]
    if {"-h", "--help"} & {*(args[: args.index("--")] if "--" in args else args)}:
        print(_parser.help_of(name, verb, more), end="")
        sys.exit(0)
    given = _parser.parse(name, verb, args, more)
    if given.get("json") is not None:
        check_json(given["json"])  # before hours of work, not after them
    if (place := launch.place()) is not None:
        if name in SHARED:
            launch.announce(place)
        elif place.rank:
            return
        else:
            launch.alone()
    with machine.using(given.pop(DEVICE.name, None)):
        _parser.call(verb, given)


def _overview() -> str:
    """Every verb and what it does, in a line each, by purpose."""
    lines = ["Self-supervised visual pretraining: a folder of unlabeled images in, a backbone out.", ""]
    lines.append("usage: manyviews VERB ...")
    for title, verbs in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:10} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in verbs.items()]
    return "\n".join([*lines, "", "`manyviews VERB --help` shows examples and every option."])
