"""What the README says must be true: its Python runs, its commands and options exist.

So do those of docs/gpu.md."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from doublespec.cli import app
from doublespec.methods import METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


GPU = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


def _blocks(language: str, document: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document, flags=re.DOTALL)


@pytest.mark.parametrize("code", _blocks("python"))
def test_python_blocks_run(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


def _commands() -> list[list[str]]:
    blocks = [*_blocks("console"), *_blocks("console", GPU)]
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("doublespec")]


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_commands_and_their_options_exist(words: list[str]) -> None:
    command = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    options = {
        name
        for parameter in command.params
        for name in [*parameter.opts, *parameter.secondary_opts]
    }
    assert {word for word in words[1:] if word.startswith("--")} <= options


def test_make_targets_exist() -> None:
    targets = re.findall(r"^make (\w+)", "\n".join(_blocks("console")), flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_every_method_is_named() -> None:
    assert all(f"`{name}`" in README for name in METHODS)


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
