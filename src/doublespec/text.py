"""Between text and tokens: tokenizer, chat template, streaming. Knows nothing of models."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from filecmp import cmpfiles
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

from doublespec import kept
from doublespec.errors import ConfigError, ModelError, reason
from doublespec.tokens import Tokens

_QUIET: Final = {"verbose": False}  # whether a text is too long is not for a tokenizer to say
_TOKENIZER_FILES = (".json", ".jinja", ".model", ".txt")  # and a model's configurations
# What gives tokens their ids; there is always the first one where transformers' own are read.
_VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
_LARGEST_FILE = 1 << 26  # of a tokenizer, in bytes; larger texts are something else
_WINDOW = 16  # tokens whose text is made anew at every step

Message = Mapping[str, str]  # {"role": "user", "content": "..."}


class Codec(Protocol):
    """Text as tokens and back: a tokenizer, or numbers."""

    @property
    def end_ids(self) -> frozenset[int]: ...

    @property
    def vocabulary(self) -> dict[str, int]: ...

    @property
    def has_chat_template(self) -> bool: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: Sequence[Message]) -> list[int]: ...

    def decode(self, tokens: Tokens) -> str: ...


class NumberCodec:
    """For models that have no tokenizer: a token's text is its number."""

    end_ids: frozenset[int] = frozenset()
    has_chat_template = False

    @property
    def vocabulary(self) -> dict[str, int]:
        """No tokenizer's, so that nothing that was made with one fits."""
        return {}

    def encode(self, text: str) -> list[int]:
        """Raises ConfigError where the text is no list of numbers."""
        words = text.split()
        if not words or not all(word.isdecimal() for word in words):
            raise ConfigError(
                f"random weights have no tokenizer: give token ids like '17 4 9', got {text!r}"
            )
        return [int(word) for word in words]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        raise ConfigError("random weights have no chat template; give token ids to generate")

    def decode(self, tokens: Tokens) -> str:
        return "".join(f"{token} " for token in tokens)


class TextCodec:
    """The tokenizer of a checkpoint, its chat template and its end tokens."""

    def __init__(self, folder: Path) -> None:
        try:
            self._tokenizer: Any = _load_tokenizer(folder)
        except Exception as error:  # what tokenizers raise is of many kinds, all of one meaning
            raise ModelError(
                f"{folder} has no tokenizer that transformers reads: {reason(error)}"
            ) from error
        self._folder = folder
        self._decode = _decoder_of(self._tokenizer)
        self.end_ids = self._find_end_ids()

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token, by the name that the tokenizer has for it."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be encoded."""
        return self._tokenizer.chat_template is not None

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, with what the tokenizer puts before it. An empty prompt is the
        token that begins texts; raises ConfigError if there is none, or it is not Unicode text."""
        check_text("the prompt", text)
        tokens: list[int] = self._tokenizer.encode(text, **_QUIET)
        if tokens:
            return tokens
        if self._tokenizer.bos_token_id is None:
            raise ConfigError("the prompt is empty, and this model has no token to begin with")
        return [self._tokenizer.bos_token_id]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation up to where the assistant answers; raises ConfigError."""
        if not messages:
            raise ConfigError("a conversation needs at least one message, got none")
        if not self.has_chat_template:
            raise ConfigError(f"{self._folder} has no chat template; use generate instead of chat")
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates raise errors of their own
            raise ConfigError(
                f"the chat template refuses these messages: {reason(error)}"
            ) from error
        check_text("the prompt", text)
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False, **_QUIET)
        return tokens

    def decode(self, tokens: Tokens) -> str:
        """The text of tokens, without the special ones among them."""
        return self._decode(list(tokens), skip_special_tokens=True)

    def _find_end_ids(self) -> frozenset[int]:
        """Every end token that the checkpoint names: a chat model often has several."""
        found: list[object] = [self._tokenizer.eos_token_id]
        for name in ("generation_config.json", "config.json"):
            path = self._folder / name
            if path.is_file():
                value = _read_json(path).get("eos_token_id")
                found += value if isinstance(value, list) else [value]
        return frozenset(token for token in found if isinstance(token, int))


def have_same_vocabulary(one: Path, other: Path) -> bool:
    """Whether the vocabularies of two checkpoints are from the same files, so that neither need be
    read to know that they are alike: that takes seconds with large ones."""
    names = [n for n in _VOCABULARY_FILES if (one / n).is_file() or (other / n).is_file()]
    alike, _, _ = cmpfiles(one, other, names, shallow=False)
    return _VOCABULARY_FILES[0] in names and alike == names


def _load_tokenizer(folder: Path) -> Any:
    """The tokenizer that transformers chooses for a checkpoint. To choose takes it seconds, since
    it imports what models of all kinds need: so the class that it has chosen is kept, if that by
    itself makes the same of these files."""
    source = _tokenizer_source(folder)
    known = kept.find("tokenizer", source)
    if known is not None:
        module, name = known.decode().split(":")
        return getattr(import_module(module), name).from_pretrained(folder)
    from transformers import AutoTokenizer  # takes a second by itself

    chosen: Any = AutoTokenizer.from_pretrained(folder)
    kind = type(chosen)
    with suppress(Exception):  # then that class cannot do it by itself
        is_theirs = kind.__module__.startswith("transformers.")
        if is_theirs and _alike(chosen, kind.from_pretrained(folder)):
            kept.keep("tokenizer", source, f"{kind.__module__}:{kind.__name__}".encode())
    return chosen


def _decoder_of(tokenizer: Any) -> Callable[..., str]:
    """How a tokenizer makes text of ids. Where transformers adds nothing to what `tokenizers` makes
    of them, that is asked itself: to look for arrays and lists of texts takes longer."""
    from transformers import PreTrainedTokenizerFast

    kind, usual = type(tokenizer), PreTrainedTokenizerFast
    decode: Callable[..., str] = tokenizer.decode
    if not isinstance(tokenizer, usual) or getattr(tokenizer, "clean_up_tokenization_spaces", True):
        return decode
    is_usual = all(getattr(kind, n) is getattr(usual, n) for n in ("decode", "_decode"))
    if is_usual:
        decode = tokenizer.backend_tokenizer.decode
    return decode


def _tokenizer_source(folder: Path) -> str:
    """All that the choice depends on; transformers goes by the name of a folder, too."""
    lines = [version("transformers"), version("tokenizers"), str(folder)]
    for path in sorted(folder.iterdir()):
        is_small = path.is_file() and path.stat().st_size <= _LARGEST_FILE
        if path.suffix in _TOKENIZER_FILES and is_small:
            lines.append(f"{path.name} {sha256(path.read_bytes()).hexdigest()}")
    return "\n".join(lines)


def _alike(one: Any, other: Any) -> bool:
    """Whether two tokenizers are the same, as far as can be told; of those that transformers
    has written in Python it cannot."""
    first, second = (getattr(each, "backend_tokenizer", None) for each in (one, other))
    if first is None or second is None or first.to_str() != second.to_str():
        return False
    names = ("chat_template", "special_tokens_map", "clean_up_tokenization_spaces")
    return all(getattr(one, name, None) == getattr(other, name, None) for name in names)


def check_text(what: str, text: object) -> None:
    """Raises ConfigError unless it is a string that can be written as UTF-8."""
    if not isinstance(text, str):
        raise ConfigError(f"{what} must be a string, got {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{what} is not Unicode text, it holds {text[error.start]!r}, as of bytes that are "
            "not UTF-8; give it in UTF-8, and in a UTF-8 locale"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path} is not a JSON object: {reason(error)}") from error


def cut_at(text: str, strings: Iterable[str]) -> str:
    """`text` up to the first of the stop strings."""
    found = [position for string in strings if (position := text.find(string)) >= 0]
    return text[: min(found)] if found else text


class TextStream:
    """Turns settled tokens into pieces of text that may be shown at once.

    Held back are bytes of an unfinished character and what could become a stop string; all pieces
    together are the text of all tokens up to the first stop string.
    """

    def __init__(self, codec: Codec, strings: Sequence[str]) -> None:
        self._codec = codec
        self._strings = strings
        self._tokens: list[int] = []  # those whose text is not in `_earlier`
        self._earlier = ""
        self._sent = 0

    @property
    def text(self) -> str:
        """The text of all tokens so far, up to the first stop string."""
        return cut_at(self._earlier + self._codec.decode(self._tokens), self._strings)

    def push(self, new: Tokens) -> str:
        """Takes settled tokens; the piece of text that may be shown now."""
        self._tokens += new
        if len(self._tokens) > 2 * _WINDOW:
            self._settle()
        text = self.text
        return self._send(text, _safe_length(text, self._strings))

    def finish(self) -> str:
        """The rest of the text: no more tokens will come."""
        text = self.text
        return self._send(text, len(text))

    def _settle(self) -> None:
        """Keeps the text of earlier tokens, so that a step costs the same in a long answer; only
        where it does not depend on the tokens after them."""
        head, tail = self._tokens[:-_WINDOW], self._tokens[-_WINDOW:]
        earlier, later = self._codec.decode(head), self._codec.decode(tail)
        if earlier + later == self._codec.decode(self._tokens):
            self._earlier += earlier
            self._tokens = tail

    def _send(self, text: str, stop: int) -> str:
        piece = text[self._sent : stop]
        self._sent = max(self._sent, stop)
        return piece


def _safe_length(text: str, strings: Sequence[str]) -> int:
    """How much of `text` no later token can change."""
    stop = len(text)
    while stop and text[stop - 1] == "\ufffd":
        stop -= 1
    for string in strings:
        for size in range(min(len(string) - 1, stop), 0, -1):
            if text[:stop].endswith(string[:size]):
                stop -= size
                break
    return stop
