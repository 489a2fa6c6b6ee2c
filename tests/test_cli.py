"""The command line as a user meets it: what it prints, and how it fails."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pytest

import doublespec
from doublespec.bench import profile
from doublespec.cli import main, options
from tests.commands import run_command


def _process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "doublespec", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_generate_prints_the_text_and_the_figures_apart() -> None:
    run = _process("generate", "Sort these words: pear, fig, apple.", "--max-tokens", "20")
    assert run.returncode == 0
    assert run.stdout.strip()
    assert "tokens/s" in run.stderr


def test_generate_answers_programs_in_json_and_every_method_says_the_same() -> None:
    texts = set()
    for method in ("ar", "double-serial"):
        run = run_command("generate", "-", "--json", "--method", method, stdin="A dog and a cat")
        answer = json.loads(run.stdout)
        assert answer["stats"]["tokens"] == len(answer["tokens"])
        texts.add(answer["text"])
    assert len(texts) == 1


def test_chat_goes_on_until_the_input_ends() -> None:
    run = run_command("chat", "--max-tokens", "8", stdin="Hello!\nThank you.\n")
    assert run.returncode == 0
    assert run.stderr.count("tokens/s") == 2


def test_a_conversation_that_has_become_too_long_goes_on_without_its_oldest_turns() -> None:
    """It ended with an error. A question that is too long by itself is refused, no more."""
    questions = ["one two " * 80, "three four " * 80, "five " * 400, "six?"]
    options = ("--draft", "none", "--max-length", "300", "--max-tokens", "8")
    run = run_command("chat", *options, stdin="\n".join(questions))
    assert run.returncode == 0
    assert run.stderr.count("tokens/s") == 3
    assert run.stderr.count("the context is full: the oldest 2 messages are left out") == 1
    assert run.stderr.count("and the context holds 300, the answer included") == 1


def test_a_conversation_that_cannot_begin_ends_with_a_sentence() -> None:
    run = run_command("chat", "--draft", "none", "--system", "word " * 3000, stdin="Hello\n")
    assert run.returncode == 2
    assert "shorten the prompt" in run.stderr


def test_a_method_that_was_asked_for_is_explained_by_its_answer() -> None:
    """All rows were those of `auto`, with no steps."""
    options = ("--draft", "none", "--method", "ar", "--max-tokens", "4", "--ignore-eos")
    run = run_command("generate", "x", "--explain", *options)
    assert "ar, as was asked for" in run.stderr
    assert "lookup" not in run.stderr
    row = next(line for line in run.stderr.splitlines() if "100%" in line)
    assert row.split()[5] == "4"


def test_a_model_is_read_with_one_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each report made another one."""
    bar = options.progress_bar()

    class Fake:
        def __init__(self, *_: object, progress: Callable[[str, int, int], None]) -> None:
            for what, done in (("target", 1), ("target", 2), ("draft", 1)):
                progress(what, done, 2)

        __enter__, __exit__ = lambda self: self, lambda *_: None

    monkeypatch.setattr(options, "progress_bar", lambda: bar)
    monkeypatch.setattr(options, "LLM", Fake)
    with options.loaded("bundled", "none"):
        pass
    assert [(task.description, task.completed) for task in bar.tasks] == [
        ("loading target", 2),
        ("loading draft", 1),
    ]


def test_lossless_compares_and_counts() -> None:
    run = run_command("lossless", "--tokens", "300", "--max-tokens", "24", "--json")
    report = json.loads(run.stdout)
    assert run.returncode == 0
    assert report["tokens"] >= 300
    assert report["differences"] == 0


def test_lossless_compares_every_method_at_every_temperature_whatever_the_tokens() -> None:
    """With few tokens it ended before most methods had answered."""
    options = ("--draft", "none", "--methods", "lookup,auto", "--max-tokens", "4", "--json")
    run = run_command("lossless", "--tokens", "1", *options)
    report = json.loads(run.stdout)
    assert run.returncode == 0
    assert report["methods"] == {"lookup": 12, "auto": 12}
    assert report["tokens"] == 24


def test_doctor_measures_tests_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("doublespec.cli.doctor"), "_MOST_ROUNDS", 1)
    monkeypatch.setattr(profile, "_LONG_SECONDS", 0.0)
    path = tmp_path / "profile.json"
    run = run_command("doctor", "--trials", "2", "--json", "--save", str(path))
    report = json.loads(run.stdout)
    assert run.returncode == 0
    assert report["exact"] is True
    saved = json.loads(path.read_text())
    assert saved["target"]["seconds"]["16"] > 0
    goes_on = report["kernels"] == "native"
    for name in ("target", "fastest", "draft"):  # and seconds behind another forward of the call
        assert bool(saved[f"{name}_chained_seconds"]) == goes_on
    assert report["c"] == saved["target"]["seconds"]["1"] / saved["draft"]["seconds"]["1"]
    beside = saved["beside"]["draft"]["seconds"]["1"] / saved["draft"]["seconds"]["1"]
    assert report["slower_beside"]["draft"] == beside
    assert "gamma" not in report
    again = run_command("doctor", "--save", str(path))
    assert again.returncode == 2
    assert "--force" in again.stderr


def test_the_overhead_of_the_engine_is_measured() -> None:
    rows = json.loads(run_command("bench-overhead", "--json").stdout)["overhead"]
    assert {row["context"] for row in rows} == {1000, 32000}
    assert {row["loop"] for row in rows if row["beside_seconds"] > 0} == {"double"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate",), "give a prompt"),
        (("generate", "x", "--prompt-file", "y"), "not both"),
        (("generate", "--prompt-file", "/no/such/file"), "cannot read the prompt file"),
        (("generate", "x", "--target", "/no/such/folder"), "there is no folder"),
        (("generate", "x", "--temperature", "-3"), "temperature must be"),
        (("generate", "x", "--method", "magic"), "method must be one of"),
        (("generate", "x", "--method", "sd", "--draft", "none"), "needs a draft model"),
        (("demo", "--rounds", "0"), "rounds must be a whole number from 1 up, got 0"),
        (("lossless", "--temperatures", "warm"), "temperatures must be like"),
        (("doctor", "--save", "/no/such/folder/p.json"), "there is no folder"),
        (("generate", "x", "--target-device", "cpu,cpu,cpu"), "divided evenly among 3 target"),
        (("lossless", "--chaos", "1", "--target-device", "cpu,cpu"), "give it one target device"),
        (("lossless", "--chaos", "1", "--methods", "sd"), "--chaos does not use --methods"),
        (("lossless", "--chaos", "1", "--max-tokens", "9"), "--chaos does not use --max-tokens"),
        (("lossless", "--tokens", "-5"), "tokens must be a whole number from 1 up, got -5"),
        (("lossless", "--methods", "foo"), "method must be one of"),
        (("doctor", "--trials", "0"), "trials must be a whole number from 1 up, got 0"),
        (("generate", "x", "--threads", "100000"), "threads must be a whole number from 1 to 1024"),
        (("generate", "\udcff"), "the prompt is not Unicode text"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], message: str
) -> None:
    run = run_command(*arguments)
    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_a_mistake_ends_the_process_with_exit_code_2() -> None:
    run = _process("generate")
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("error: give a prompt")
    assert len(run.stderr.strip().splitlines()) == 1


def test_a_prompt_on_stdin_that_is_not_text_is_refused() -> None:
    run = run_command("generate", "-", stdin=b"\xff\xfe abc")
    assert run.returncode == 2
    assert "the prompt on stdin is not UTF-8 text" in run.stderr


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_output_that_cannot_be_written_is_one_sentence(more: tuple[str, ...]) -> None:
    """As on a full disk; Python ended with a traceback, or with one more at its end."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        run = run_command("generate", "x", "--max-tokens", "1", *more, stdout=full)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("error: the output cannot be written: No space")


def test_a_closed_stdout_is_refused() -> None:
    with patch.object(sys, "stdout", None), pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2


def test_characters_that_stdout_does_not_have_are_replaced(tmp_path: Path) -> None:
    """For programs they are escaped, which loses nothing."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    with patch.object(sys, "argv", ["doublespec", "generate", "--help"]):
        with patch.object(sys, "stdout", out), pytest.raises(SystemExit):
            main()
        with patch.object(sys, "stdout", out):
            options.print_json({"text": "é"})
            sys.stdout.write("é\n")
    assert out.buffer.getvalue().endswith(b'{"text": "\\u00e9"}\n?\n')  # type: ignore[attr-defined]


def test_a_prompt_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes(b"\xff\xfe\x00")
    run = run_command("generate", "--prompt-file", str(tmp_path / "prompt"))
    assert run.returncode == 2
    assert "not UTF-8" in run.stderr


@pytest.mark.parametrize("module", ["typer", "torch", "doublespec.llm"])
def test_ctrl_c_while_modules_are_imported_says_nothing(module: str) -> None:
    """In the first seconds torch is being imported; a traceback was printed there."""
    code = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['doublespec', '--help']\n"
        "runpy.run_module('doublespec', run_name='__main__')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "")


def test_names_of_files_are_shown_as_they_are(tmp_path: Path) -> None:
    """[id] was left out of a name as markup, and [/x] ended the command."""
    (tmp_path / "a.txt").write_text("one two three four five six", encoding="utf-8")
    (tmp_path / "b[").mkdir()
    (tmp_path / "b[" / "x][id].txt").write_bytes(b"\xff")
    store = tmp_path / "b[" / "x][id].store"
    build = run_command("datastore", "build", str(store), str(tmp_path))
    assert build.returncode == 0
    assert "b[/x][id].txtisnotUTF-8text" in "".join(build.stderr.split())
    assert "b[/x][id].store" in "".join(build.stdout.split())
    verify = run_command("datastore", "verify", str(store))
    assert "b[/x][id].storeisasitwaswritten" in "".join(verify.stdout.split())


def test_the_version_is_said() -> None:
    run = run_command("--version")
    assert (run.returncode, run.stdout) == (0, f"doublespec {doublespec.__version__}\n")


def test_the_package_says_that_it_has_types() -> None:
    assert (Path(doublespec.__file__).parent / "py.typed").is_file()


def test_the_package_imports_only_what_is_asked_for() -> None:
    code = "import sys, doublespec; doublespec.ConfigError; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.stdout == "False\n"
