"""The command line: a verb has the same name and the same meaning as its function in Python."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro

# Nothing heavy is imported here: `manyviews --help` answers at once.
from manyviews.cli import evaluate, show, train, use
from manyviews.cli._options import check_json
from manyviews.cli._options import settings as _settings
from manyviews.errors import UserError, printable, unknown

__all__ = ["GROUPS", "VERBS", "_settings", "main"]

GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Train": {
        "prepare": train.prepare,
        "pretrain": train.pretrain,
        "resume": train.resume,
        "finish": train.finish,
        "sweep": train.sweep,
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
        "embed": use.embed,
        "duplicates": use.duplicates,
        "export": use.export,
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


def main(args: Sequence[str] | None = None) -> None:
    """Run a command. Exits with 0, with 2 after bad input, and with 1 after a failure or an interruption."""
    args = sys.argv[1:] if args is None else args
    try:
        if not args or args[0] in ("-h", "--help"):
            print(_overview())
            sys.exit(0 if args else 2)
        if args[0] not in VERBS:
            raise unknown("verb", args[0], VERBS)
        for flag, value in zip(args, [*args[1:], ""], strict=True):
            if flag == "--json" or flag.startswith("--json="):
                check_json(Path(flag.partition("=")[2] or value))  # before hours of work, not after them
        tyro.cli(VERBS[args[0]], prog=f"manyviews {args[0]}", args=args[1:])
    except UserError as e:
        print(printable(f"manyviews: {e}"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("manyviews: interrupted.", file=sys.stderr)
        sys.exit(1)
    except Exception as e:
        # These happen to anybody: a stop, numbers that are not finite, a full disk.
        if isinstance(e, (FloatingPointError, OSError)) or type(e).__name__ in ("Stopped", "SafetensorError"):
            print(printable(f"manyviews: {e}"), file=sys.stderr)
        else:
            traceback.print_exc()
        sys.exit(1)


def _overview() -> str:
    """Every verb and what it does, in a line each, by purpose."""
    lines = ["Self-supervised visual pretraining: a folder of unlabeled images in, a backbone out.", ""]
    lines.append("usage: manyviews VERB ...")
    for title, verbs in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:10} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in verbs.items()]
    return "\n".join([*lines, "", "`manyviews VERB --help` shows examples."])
