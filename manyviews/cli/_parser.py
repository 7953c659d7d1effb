"""Command lines from the signatures of functions, with help and errors in plain sentences.

The parameters of a verb before `/` are its positional arguments, in this order; all others are options. Types, defaults
and the section `Args:` of the docstring say the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args, get_origin

from manyviews.cli import _nearest
from manyviews.errors import UserError


@dataclass(frozen=True)
class Arg:
    """What the help says of an argument, as metadata of `Annotated`.

    Attributes:
        metavar: what stands for the value; by default a word for its type.
        help: what it is, unless the verb's docstring says so.
        repeat: an option that takes one value and may be given several times.
    """

    metavar: str = ""
    help: str = ""
    repeat: bool = False


@dataclass(frozen=True)
class Argument:
    """An argument of a verb.

    Attributes:
        name: name of the parameter.
        type: type of one value; a `Literal` has choices.
        many: whether it takes several values.
        default: the default, or `inspect.Parameter.empty` if it must be given.
        positional: whether it has no flag.
        arg: what the help says of it.
        part: the parameter that is a dataclass with this field; empty for a parameter of its own.
    """

    name: str
    type: Any
    many: bool
    default: Any
    positional: bool
    arg: Arg
    part: str = ""

    @property
    def flag(self) -> str:
        return "--" + self.name.strip("_").replace("_", "-")

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def metavar(self) -> str:
        if self.arg.metavar:
            return self.arg.metavar
        if self.choices:
            return "{" + ",".join(self.choices) + "}"
        name = self.name.strip("_").upper()
        return name if self.positional else {int: "N", float: "NUMBER"}.get(self.type, name)

    @property
    def shown(self) -> str:
        """The argument as a person types it."""
        if self.positional:
            return f"{self.metavar} ..." if self.many else self.metavar
        more = f" {self.metavar} ..." if self.many and not self.arg.repeat else ""
        return self.flag if self.type is bool else f"{self.flag} {self.metavar}{more}"


Verb = Callable[..., None]


def parse(name: str, verb: Verb, args: Sequence[str], more: Sequence[Argument] = ()) -> dict[str, Any]:
    """The arguments of a command line, by name; the others have their defaults.

    Args:
        name: name of the verb.
        verb: its function.
        args: the words after the verb.
        more: further options, of which the function knows nothing.

    Raises:
        UserError: an unknown option, a value of the wrong kind, a missing or an extra argument.
    """
    known = [*arguments(verb), *more]
    options = {a.flag: a for a in known if not a.positional}
    args = [_hyphens(word) for word in args]
    for word in args[: args.index("--")] if "--" in args else args:
        option = word.partition("=")[0]
        negated = options.get(option.replace("--no-", "--", 1))
        if re.match(r"--?[A-Za-z]", word) and option not in options and (negated is None or negated.type is not bool):
            raise UserError(_nearest.option(name, option, options, args))
    parser = _parser(name)
    for a in options.values():
        _add(parser, a, name)
    found, words = parser.parse_known_args(args)
    given = vars(found)
    words = [word for i, word in enumerate(words) if word != "--" or "--" in words[:i]]
    for a in (a for a in known if a.positional):
        taken, words = (words, []) if a.many else (words[:1], words[1:])
        if taken:
            values = [_converter(a, name)(word) for word in taken]
            given[a.name] = tuple(values) if a.many else values[0]
    if words:
        takes = " ".join(a.shown for a in known if a.positional) or "no argument but options"
        raise UserError(f"{name} takes {takes}, and '{words[0]}' is one too many: see `manyviews {name} --help`.")
    missing = [a for a in known if a.required and a.name not in given]
    if missing:
        raise UserError(_missing(name, verb, missing, bare=not args))
    return {a.name: tuple(given[a.name]) if a.many else given[a.name] for a in known if a.name in given}


def call(verb: Verb, given: Mapping[str, Any]) -> None:
    """Call a verb with its arguments by name, as `parse` returns them, and the defaults of all others."""
    parameters, parts = inspect.signature(verb).parameters, {a.name: a.part for a in arguments(verb)}
    values = {name: parameter.default for name, parameter in parameters.items()}
    for name, value in given.items():
        part = parts[name]
        values[part or name] = dataclasses.replace(values[part], **{name: value}) if part else value
    before = [values.pop(name) for name, p in parameters.items() if p.kind is p.POSITIONAL_ONLY]
    verb(*before, **values)


def _missing(name: str, verb: Verb, missing: Sequence[Argument], bare: bool) -> str:
    """What a command line lacks; examples, if nothing was given at all."""
    needed = [a.shown for a in missing]
    listed = " and ".join(", ".join(needed).rsplit(", ", 1))
    if bare:
        example = examples(verb)[0].strip()
        return f"{name} needs {listed}, for example `{example}`. `manyviews {name} --help` explains the rest."
    what = f" ({missing[0].arg.help.rstrip('.')})" if len(missing) == 1 and missing[0].arg.help else ""
    return f"{name} needs {listed}{what}: see `manyviews {name} --help`."


def usage(name: str, verb: Verb) -> str:
    """A line of what a verb takes."""
    known = arguments(verb)
    words = [a.shown if a.required else f"[{a.shown}]" for a in known if a.positional]
    words += [a.shown for a in known if a.required and not a.positional]
    return " ".join([f"manyviews {name}", *words, "[options]"])


def help_of(name: str, verb: Verb, more: Sequence[Argument] = ()) -> str:
    """The help of a verb: what it does, examples, and each argument with its default."""
    known = arguments(verb)
    known += [*more, *(known.pop() for a in known[-1:] if a.name == "json")]  # what matters least comes last
    parts = list(dict.fromkeys(a.part for a in known if a.part))
    parser = _parser(name, usage=usage(name, verb), description=description(verb), add_help=False)
    groups: list[tuple[str, list[Argument]]] = [
        ("arguments", [a for a in known if a.positional]),
        ("options", [a for a in known if not a.positional and not a.part]),
    ]
    for part in parts:
        title = inspect.getdoc(_plain(_hints(verb)[part])[0]) or part
        groups.append((title.splitlines()[0].rstrip(".").lower(), [a for a in known if a.part == part]))
    for title, some in groups:
        group = parser.add_argument_group(title)
        for a in some:
            _add(group, a, name)
        if title == "options":
            group.add_argument("-h", "--help", action="store_true", help="Show this help.")
    return parser.format_help()


def description(verb: Verb) -> str:
    """The docstring of a verb without its arguments."""
    return (inspect.getdoc(verb) or "").partition("\nArgs:\n")[0].strip()


def examples(verb: Verb) -> list[str]:
    """The lines of a verb's docstring that are commands."""
    return (inspect.getdoc(verb) or "").partition("For example:\n")[2].partition("\n\n")[0].splitlines()


def arguments(verb: Verb) -> list[Argument]:
    """The arguments of a verb, those of a parameter that is a dataclass in its place."""
    hints, words, found = _hints(verb), meanings(verb), []
    for name, parameter in inspect.signature(verb).parameters.items():
        kind, arg = _plain(hints[name])
        if dataclasses.is_dataclass(kind):
            inner, of_fields = typing.get_type_hints(kind, include_extras=True), meanings(kind)
            found += [
                _argument(f.name, *_plain(inner[f.name]), f.default, of_fields, positional=False, part=name)
                for f in dataclasses.fields(kind)
            ]
        else:
            positional = parameter.kind is parameter.POSITIONAL_ONLY
            found.append(_argument(name, kind, arg, parameter.default, words, positional))
    return found


def _argument(
    name: str, kind: Any, arg: Arg, default: Any, words: Mapping[str, str], positional: bool, part: str = ""
) -> Argument:
    many = get_origin(kind) is tuple
    kind = get_args(kind)[0] if many else kind
    return Argument(
        name, kind, many, default, positional, dataclasses.replace(arg, help=words.get(name, arg.help)), part
    )


def _hints(verb: Verb) -> dict[str, Any]:
    return typing.get_type_hints(verb, include_extras=True)


def _plain(hint: Any) -> tuple[Any, Arg]:
    """The type without `Annotated` and `None`, and what the help says."""
    arg = Arg()
    while True:
        if get_origin(hint) is typing.Annotated:
            arg = next((x for x in hint.__metadata__ if isinstance(x, Arg)), arg)
            hint = hint.__origin__
        elif get_origin(hint) in (typing.Union, types.UnionType):
            (hint,) = (x for x in get_args(hint) if x is not type(None))
        else:
            return hint, arg


def meanings(thing: Any) -> dict[str, str]:
    """What a docstring says of each argument or attribute."""
    doc = inspect.getdoc(thing) or ""
    section = re.split(r"^(?:Args|Attributes):\n", doc, flags=re.MULTILINE)
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1] if len(section) > 1 else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


# -- argparse ----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Python's sentence about an option, as one of ours."""
        found = re.match(r"argument (?:\S+/)?(--[\w-]+)\S*: (expected|ignored)", message)
        what = message[:1].upper() + message[1:]
        if found:
            what = f"{found[1]} {'needs a' if found[2] == 'expected' else 'takes no'} value"
        raise UserError(f"{what}: see `{self.prog} --help`.")


class _Once(argparse.Action):
    """The value of an option, which Python would let a later one replace without a word."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.dest in namespace:  # defaults are not
            several = ": separate several values by commas" if "," in str(self.metavar) else ""
            raise UserError(f"{option_string} is given twice{several}: see `{parser.prog} --help`.")
        setattr(namespace, self.dest, values)


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **more: Any) -> None:
        super().__init__(prog, max_help_position=24, width=min(100, shutil.get_terminal_size().columns))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)  # names of options stay whole


def _parser(name: str, **more: Any) -> _Parser:
    more.setdefault("add_help", False)
    return _Parser(
        f"manyviews {name}",
        formatter_class=_Help,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        **more,
    )


def _add(parser: Any, a: Argument, name: str) -> None:
    """Add an argument to a parser or to a group of its help."""
    help = _help(a).replace("%", "%%")
    if a.positional:
        parser.add_argument(a.name, metavar=a.metavar, nargs="?", help=help)
    elif a.type is bool and a.default:
        parser.add_argument(a.flag, dest=a.name, action=argparse.BooleanOptionalAction, help=f"{help} (default: yes)")
    elif a.type is bool:
        parser.add_argument(a.flag, dest=a.name, action="store_true", help=help)
        off = a.flag.replace("--", "--no-", 1)
        parser.add_argument(off, dest=a.name, action="store_false", help=argparse.SUPPRESS)
    else:
        how: dict[str, Any] = {"type": _converter(a, name), "metavar": a.metavar, "action": _Once}
        if a.many:
            how |= {"action": "append"} if a.arg.repeat else {"action": "extend", "nargs": "+"}
        parser.add_argument(a.flag, dest=a.name, help=help, **how)


def _help(a: Argument) -> str:
    """What an argument is, with its default."""
    notes = []
    if a.arg.repeat:
        notes.append("may be repeated")
    if a.required and not a.positional:
        notes.append("required")
    elif not (a.required or a.default in (None, ()) or isinstance(a.default, bool) or "default" in a.arg.help):
        values = a.default if a.many else (a.default,)
        notes.append("default: " + " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values))
    return f"{a.arg.help} ({', '.join(notes)})" if notes else a.arg.help


def _converter(a: Argument, name: str) -> Callable[[str], Any]:
    """From the word of a command line to a value, or an error that names the argument."""
    said = a.metavar if a.positional else a.flag

    def convert(word: str) -> Any:
        if a.choices:
            if word not in a.choices:
                hint = _nearest.choice(a.name, word, a.choices)
                raise UserError(f"{said} of {name} is one of {', '.join(a.choices)}, not '{word}'.{hint}")
            return word
        try:
            return a.type(word)
        except ValueError:
            wanted = {int: "a whole number", float: "a number"}.get(a.type, a.type.__name__)
            example = f", such as {a.flag} {a.default}" if not a.positional and a.type is int and a.default else ""
            raise UserError(f"{said} takes {wanted}{example}, not '{word}'.") from None

    return convert


def _hyphens(word: str) -> str:
    """An option with hyphens, however it was written."""
    option, equals, value = word.partition("=")
    return option.replace("_", "-") + equals + value if option.startswith("--") else word
