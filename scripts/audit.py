"""Licenses of everything that manyviews installs, and known weaknesses in it: what `make audit` runs.

The licenses are those that the installed packages state. pip-audit, from the environment in the first argument, asks
PyPI and OSV for known weaknesses, so it needs the network.
"""

from __future__ import annotations

import importlib.metadata as metadata
import re
import subprocess
import sys
from pathlib import Path

COPYLEFT = re.compile(r"\b(A?GPL|GNU (Affero )?General Public)", re.IGNORECASE)
WEAKER = re.compile(r"\bLGPL|Lesser General Public|exception|MPL", re.IGNORECASE)
"""Licenses that allow any program to use the package."""


def installed(root: str = "manyviews") -> dict[str, metadata.Distribution]:
    """The installed packages that a package needs, with all its extras except those for its developers."""
    found: dict[str, metadata.Distribution] = {}
    todo = [(root, ("all",))]
    while todo:
        name, extras = todo.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found and not extras:
            continue
        try:
            one = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        known, found[key] = key in found, one
        for line in one.requires or ():
            extra = re.search(r"""extra\s*==\s*["']([^"']+)""", line)
            if (extra is None and not known) or (extra is not None and extra[1] in extras):
                wanted = re.match(r"([\w.-]+)\s*(?:\[([^\]]*)\])?", line)
                assert wanted is not None
                todo.append((wanted[1], tuple(filter(None, (wanted[2] or "").split(",")))))
    return found


def license_of(one: metadata.Distribution) -> str:
    """The license as the package states it: its expression, else its classifiers, else the first line of its text."""
    facts = one.metadata
    classified = [c.rpartition(" :: ")[2] for c in facts.get_all("Classifier") or () if c.startswith("License ::")]
    text = (facts.get("License") or "").strip().partition("\n")[0]
    return facts.get("License-Expression") or ", ".join(c for c in classified if c != "OSI Approved") or text[:60]


def main() -> int:
    packages = {name: license_of(one) for name, one in sorted(installed().items()) if name != "manyviews"}
    for name, said in packages.items():
        print(f"{name:32} {said or '(says nothing)'}")
    unfit = [name for name, said in packages.items() if COPYLEFT.search(said) and not WEAKER.search(said)]
    print(f"{len(packages)} packages; under the GPL or AGPL: {', '.join(unfit) or 'none'}.")
    pinned = Path(sys.argv[1]) / "installed.txt"
    pinned.write_text("".join(f"{name}=={metadata.version(name).partition('+')[0]}\n" for name in packages))
    tool = [str(Path(sys.argv[1]) / "bin" / "pip-audit"), "--no-deps", "--disable-pip", "-r", str(pinned)]
    done = subprocess.run(tool, capture_output=True, text=True)
    unknown = done.stdout.count("could not be audited")
    if unknown:  # one line for each of them tells nothing more
        done.stdout = "\n".join(line for line in done.stdout.splitlines() if "could not be audited" not in line)
    print(done.stdout, done.stderr, sep="\n")
    failed = done.returncode and re.search(r"Connection|ServiceError|resolve|timed out|HTTP", done.stderr)
    if failed or unknown > len(packages) / 2:
        print(
            f"KNOWN WEAKNESSES WERE NOT CHECKED, of {unknown or len(packages)} of {len(packages)} packages: "
            "the service that lists them does not answer from this machine."
        )
        return 1 if unfit else 3
    print(f"Known weaknesses were checked in {len(packages) - unknown} of {len(packages)} packages.")
    return 1 if unfit or done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
