"""Fuzz by coverage: made-up files of `test_fuzzed_files`, changed towards lines of ours that none has reached yet.

python -m tests.faults.guided [--seconds 60] [KIND ...]

It needs `pip install atheris`, which exists for Linux and for few versions of Python, so nothing else depends on it.
Each kind is a process of its own. One that fails prints the case, and the others go on; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import warnings


def fuzz(kind: str, seconds: int) -> None:
    """Fuzz one kind of file in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["manyviews"]):
        from tests.faults.test_fuzzed_files import MANY, made_up
    once = made_up(kind, MANY)
    warnings.filterwarnings("ignore", "Duplicate name")
    with tempfile.TemporaryDirectory() as corpus:
        atheris.Setup([sys.argv[0], corpus, f"-max_total_time={seconds}"], once.hypothesis.fuzz_one_input)
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="keys of `FUZZED`; all without")
    parser.add_argument("--seconds", type=int, default=60, help="for each kind")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        fuzz(options.kinds[0], options.seconds)
        return
    from tests.faults.test_fuzzed_files import FUZZED  # not before: what is imported already cannot be instrumented

    failed = []
    for kind in options.kinds or FUZZED:
        command = [sys.executable, "-m", "tests.faults.guided", kind, "--seconds", str(options.seconds), "--here"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        lines = ended.stdout.splitlines()
        cases = [line for line in lines if re.match(r"#\d+\t", line)]
        print(
            f"{kind}: {'failed' if ended.returncode else 'survived'}, {cases[-1] if cases else 'no case'}", flush=True
        )
        if ended.returncode:
            failed.append(kind)
            print("\n".join(line for line in lines if not line.startswith(("#", "INFO"))), flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
