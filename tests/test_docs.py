"""README, CONTRIBUTING and the pages of docs/: their links lead somewhere, and their commands exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from speedyresnet.bench.cli import app
from speedyresnet.engine.cli import add_debug_option

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


def anchor(heading):
    """What GitHub calls a heading in links."""
    kept = re.sub(r"[^\w\s-]", "", heading.strip().lower())
    return re.sub(r"\s", "-", kept)


def anchors(page):
    """The headings of a page, as links name them."""
    return [anchor(each) for each in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)]


def dead_links(page):
    """The relative links of a page that lead to no file, or to no heading of it."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, heading = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (heading and heading not in anchors(linked)):
            dead.append(target)
    return dead


def documented_commands(page):
    """The words of each `speedyresnet` command in the page's blocks of shell code."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = (part for block in blocks for line in block.splitlines() for part in line.split("&&"))
    return [words for line in lines if (words := shlex.split(line, comments=True))[:1] == ["speedyresnet"]]


def unknown_word(words):
    """The first command or option of a command line that does not exist; none where all do."""
    command = typer.main.get_command(app)
    add_debug_option(command)
    words = iter(words[1:])
    for word in words:
        inner = getattr(command, "commands", None)
        if inner is not None:
            if word not in inner:
                return word
            command = inner[word]
        elif word.startswith("--") and not any(word in (*each.opts, *each.secondary_opts) for each in command.params):
            return word
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert dead_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_and_options_exist(page):
    commands = documented_commands(page)
    assert commands
    assert [(words, word) for words in commands if (word := unknown_word(words))] == []


def test_dead_links_and_unknown_options_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A b, c\n[x](#a-b-c) [y](#a-b) [z](none.md) [w](https://x.y)\n```sh\nspeedyresnet bench step --no\n```\n"
    )
    assert dead_links(page) == ["#a-b", "none.md"]
    assert [unknown_word(words) for words in documented_commands(page)] == ["--no"]
