"""What is kept in a user's cache from one start to the next, and what that spares. (Machine code:
tests/test_compiled.py.)"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from doublespec import kept, text
from doublespec.models import outlines
from doublespec.models.checkpoints import open_checkpoint
from doublespec.models.outlines import read_outline
from doublespec.text import TextCodec
from tests.checkpoints import CHAT_TEMPLATE, FAMILIES, write_family, write_json, write_tokenizer

CHAT = [{"role": "user", "content": "the token, café 🙂"}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_no_more_of_a_kind_is_kept_than_the_latest_that_were_of_use(cache: Path) -> None:
    kept.keep("other", "source 1", b"other")
    for number in range(70):
        kept.keep("code", f"source {number}", b"code")
        assert kept.find("code", "source 0") == b"code"
    assert len(list(cache.glob("*.code"))) == 64
    assert kept.find("code", "source 69") == b"code"
    assert kept.find("code", "source 1") is None
    assert kept.find("other", "source 1") == b"other"
    assert kept.find("other", "source 2") is None


# -- outlines --------------------------------------------------------------------------------------


def _never(*told: Any, **options: Any) -> Any:
    raise AssertionError("transformers was asked again")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_outline_is_read_once_and_stays_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    path = write_family(tmp_path, family) / "config.json"
    outline = read_outline(path)
    assert outline.decoder is not None
    monkeypatch.setattr(outlines, "read_config", _never)
    assert read_outline(path) == outline


def test_an_outline_is_of_one_configuration_and_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_family(tmp_path, "llama3") / "config.json"
    outline = read_outline(path)
    assert outline.decoder is not None
    write_json(path, {**json.loads(path.read_text()), "rms_norm_eps": 0.5})
    assert read_outline(path) == replace(outline, decoder=replace(outline.decoder, norm_eps=0.5))
    monkeypatch.setattr(outlines, "version", lambda name: "another one")
    monkeypatch.setattr(outlines, "read_config", _never)
    with pytest.raises(AssertionError, match="asked again"):
        read_outline(path)


def test_models_that_only_transformers_runs_have_outlines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    write_json(path, {"model_type": "gpt2", "vocab_size": 99})
    outline = read_outline(path)
    assert (outline.model_type, outline.vocab_size, outline.decoder) == ("gpt2", 99, None)
    monkeypatch.setattr(outlines, "read_config", _never)
    assert read_outline(path) == outline


# -- tokenizers ------------------------------------------------------------------------------------


def test_the_class_that_was_chosen_makes_the_same_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tokenizer(tmp_path / "a")
    first = TextCodec(folder)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", _never)
    second = TextCodec(folder)
    assert second.encode_chat(CHAT) == first.encode_chat(CHAT)
    assert second.encode("the token") == first.encode("the token")
    assert second.decode(range(300)) == first.decode(range(300))
    assert (second.vocabulary, second.end_ids) == (first.vocabulary, first.end_ids)


@pytest.mark.parametrize("change", ["config.json", "tokenizer.json", "tekken.json"])
def test_a_class_is_chosen_anew_where_its_files_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folder = write_tokenizer(tmp_path / "a")
    TextCodec(folder)
    path = folder / change
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content, indent=3))
    asked: list[Path] = []
    ask = transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda path: asked.append(path) or ask(path)
    )
    TextCodec(folder)
    TextCodec(folder)
    assert asked == [folder]


def test_a_class_that_alone_makes_another_tokenizer_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """As if transformers had read some file in passing."""
    folder, other = write_tokenizer(tmp_path / "a"), tmp_path / "b"
    write_tokenizer(other, chat_template=CHAT_TEMPLATE.replace("<|end|>", ""))
    ask = transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda path: ask(other))
    codec = TextCodec(folder)
    assert not list(cache.glob("*.tokenizer"))
    assert text._load_tokenizer(folder).chat_template == codec._tokenizer.chat_template


def test_a_class_that_alone_makes_none_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    folder = write_tokenizer(tmp_path / "a")
    (folder / "folder.json").mkdir()  # is no file of a tokenizer's
    made = transformers.AutoTokenizer.from_pretrained(folder)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda path: made)
    monkeypatch.setattr(type(made), "from_pretrained", _never)
    assert TextCodec(folder).encode("the token")
    assert not list(cache.glob("*.tokenizer"))


# -- what that spares ------------------------------------------------------------------------------

_START = """
import sys
from pathlib import Path
from doublespec.models.checkpoints import open_checkpoint
from doublespec.text import TextCodec
found = open_checkpoint(sys.argv[1])
before = "transformers" in sys.modules
TextCodec(found.folder)
print(before, "transformers.models.auto.configuration_auto" in sys.modules)
"""


def test_a_later_start_imports_no_configurations(tmp_path: Path, cache: Path) -> None:
    folder = write_tokenizer(write_family(tmp_path / "a", "qwen3"))
    open_checkpoint(str(folder))
    TextCodec(folder)
    environment = {**os.environ, kept.FOLDER: str(cache)}
    command = [sys.executable, "-c", _START, str(folder)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
