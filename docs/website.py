"""Build the website of the documentation from the pages that stand in the repository: `make site`.

Pages are copied to build/docs with links that fit the site, and with equations as MathML, which browsers show without a
script. README.md is the first page. Zensical builds build/site from them; MkDocs with its Material theme could, too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]
STAGE = ROOT / "build" / "docs"
TOP = {ROOT / f"{name}.md": f"{name.lower()}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")}
TOP[ROOT / "README.md"] = "index.md"
CODE = re.compile(r"(^ *```.*?^ *```[^\n]*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\w$])\$([^$\n]+?)\$(?![\w$])", re.DOTALL)


def place(page: Path) -> str:
    """Where a page of the repository stands on the site."""
    return TOP.get(page) or page.relative_to(ROOT / "docs").as_posix().replace("README.md", "index.md")


def staged(page: Path) -> str:
    """The page's text for the site. Code stays as it is."""

    def math(match: re.Match[str]) -> str:
        return convert((match[1] or match[2]).strip(), display="block" if match[1] else "inline")

    def link(match: re.Match[str]) -> str:
        path, hash_, anchor = match[3].partition("#")
        target = (page.parent / path).resolve()
        if not path or ":" in path:
            return match[0]
        if target not in TOP and not target.is_relative_to(ROOT / "docs"):
            return f"`{target.relative_to(ROOT)}`"  # a file of the repository that is no page
        up = "../" * place(page).count("/")
        return f"{match[1]}[{match[2]}]({up}{place(target)}{hash_}{anchor})"

    parts = CODE.split(page.read_text(encoding="utf-8"))
    parts[::2] = [MATH.sub(math, part) for part in parts[::2]]
    return LINK.sub(link, "".join(parts))


def main() -> int:
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", STAGE, ignore=shutil.ignore_patterns("*.py", "*.md", "*.yml", "__pycache__"))
    for page in (*TOP, *(ROOT / "docs").rglob("*.md")):
        file = STAGE / place(page)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(staged(page), encoding="utf-8")
    first = "- methods/index.md"
    methods = [f"- methods/{p.name}" for p in sorted((ROOT / "docs/methods").glob("*.md")) if p.name != "README.md"]
    settings = (
        (ROOT / "docs/website.yml").read_text(encoding="utf-8").replace(first, "\n      ".join([first, *methods]))
    )
    (STAGE.parent / "mkdocs.yml").write_text(settings, encoding="utf-8")
    build = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", "mkdocs.yml"]
    return subprocess.run(build, cwd=STAGE.parent).returncode


if __name__ == "__main__":
    sys.exit(main())
