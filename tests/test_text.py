"""Text to tokens and back: prompts, conversations, end tokens, streams."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from doublespec.errors import ConfigError, ModelError
from doublespec.text import TextCodec, TextStream, cut_at, have_same_vocabulary
from tests.checkpoints import write_json, write_tokenizer

POEM = "the café — naïve 日本語 🙂🙃, done."


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


# -- encoding --------------------------------------------------------------------------------------


def test_text_comes_back_from_its_tokens(codec: TextCodec) -> None:
    assert codec.decode(codec.encode(POEM)) == POEM


def test_a_text_longer_than_the_model_takes_is_encoded_without_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers warned of an indexing error, before we said that the prompt is too long."""
    folder = write_tokenizer(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**settings, "model_max_length": 4})
    warned: list[str] = []
    monkeypatch.setattr("transformers.tokenization_utils_base.logger.warning", warned.append)
    codec = TextCodec(folder)
    assert len(codec.encode("the text " * 9)) > 4
    assert codec.encode_chat([{"role": "user", "content": "the text " * 9}])
    assert warned == []


def test_text_is_what_transformers_makes_of_tokens(tmp_path: Path) -> None:
    """Also where it does more than `tokenizers` does by itself, or a class of its own does."""
    folder = write_tokenizer(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    is_ours = []
    for clean in (False, True):
        changed = {**settings, "clean_up_tokenization_spaces": clean}
        write_json(folder / "tokenizer_config.json", changed)
        codec, theirs = TextCodec(folder), AutoTokenizer.from_pretrained(folder)
        for tokens in (codec.encode(POEM), [], [0, 5, 1], list(range(290))):
            assert codec.decode(tuple(tokens)) == theirs.decode(tokens, skip_special_tokens=True)
        is_ours.append(codec._decode.__self__ is not codec._tokenizer)  # type: ignore[attr-defined]
    assert is_ours == [True, False]


def test_special_tokens_are_not_shown(codec: TextCodec) -> None:
    assert codec.decode([0, *codec.encode("the"), 5, 1]) == "the"


def test_an_empty_prompt_is_the_token_that_begins_texts(codec: TextCodec) -> None:
    assert codec.encode("") == [codec.vocabulary["<|bos|>"]]


def test_an_empty_prompt_is_refused_where_no_token_begins_texts(tmp_path: Path) -> None:
    codec = TextCodec(write_tokenizer(tmp_path, bos_token=None))
    with pytest.raises(ConfigError, match="the prompt is empty, and this model has no token"):
        codec.encode("")


def test_a_prompt_that_is_no_unicode_text_is_refused(codec: TextCodec) -> None:
    """As bytes that are not UTF-8 come from a shell; the tokenizer raised a TypeError."""
    for encode in (
        codec.encode,
        lambda text: codec.encode_chat([{"role": "user", "content": text}]),
    ):
        with pytest.raises(ConfigError, match=r"the prompt is not Unicode text.*'\\udcff'"):
            encode("abc \udcff")


def test_a_conversation_ends_where_the_assistant_answers(codec: TextCodec) -> None:
    special = codec.vocabulary
    tokens = codec.encode_chat([{"role": "user", "content": "the text"}])
    assert tokens == [
        *(special[name] for name in ("<|bos|>", "<|user|>")),
        *codec.encode("the text"),
        *(special[name] for name in ("<|end|>", "<|assistant|>")),
    ]


def test_the_next_turn_continues_the_tokens_of_the_conversation(codec: TextCodec) -> None:
    first = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    longer = codec.encode_chat([*first, {"role": "user", "content": "c"}])
    assert longer[:3] == codec.encode_chat(first[:1])[:3]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "a conversation needs at least one message, got none"),
        ([{"role": "nobody"}], "the chat template refuses these messages: roles must be known"),
    ],
)
def test_what_a_chat_template_refuses_is_one_sentence(
    messages: list[dict[str, str]], message: str, tmp_path: Path
) -> None:
    template = (
        "{% if messages[0]['role'] != 'user' %}{{ raise_exception('roles must be known') }}"
        "{% endif %}"
    )
    codec = TextCodec(write_tokenizer(tmp_path, chat_template=template))
    with pytest.raises(ConfigError) as caught:
        codec.encode_chat(messages)
    assert str(caught.value) == message


def test_a_model_without_a_chat_template_says_what_to_do(tmp_path: Path) -> None:
    codec = TextCodec(write_tokenizer(tmp_path, chat_template=None))
    assert not codec.has_chat_template
    with pytest.raises(ConfigError, match="has no chat template; use generate instead of chat"):
        codec.encode_chat([{"role": "user", "content": "hello"}])


# -- files -----------------------------------------------------------------------------------------


def test_all_end_tokens_of_a_checkpoint_are_found(tmp_path: Path) -> None:
    """The tokenizer's is 1; generation_config.json and config.json may name others."""
    folder = write_tokenizer(tmp_path, end_ids=[4, 5])
    assert TextCodec(folder).end_ids == {1, 4, 5}
    write_json(folder / "config.json", {"eos_token_id": 3, "model_type": "llama"})
    assert TextCodec(folder).end_ids == {1, 3, 4, 5}
    (folder / "generation_config.json").unlink()
    assert TextCodec(folder).end_ids == {1, 3}


@pytest.mark.parametrize("text", ["{", "7"])
def test_a_broken_generation_config_is_refused(tmp_path: Path, text: str) -> None:
    folder = write_tokenizer(tmp_path)
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"generation_config\.json is not a JSON object") as caught:
        TextCodec(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", [False, True])
def test_a_folder_without_a_readable_tokenizer_is_refused(tmp_path: Path, broken: bool) -> None:
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    if broken:
        write_tokenizer(tmp_path)
        (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="has no tokenizer that transformers reads") as caught:
        TextCodec(tmp_path)
    assert "\n" not in str(caught.value)


# -- streams ---------------------------------------------------------------------------------------


def test_a_text_is_cut_at_the_first_of_its_stop_strings() -> None:
    assert cut_at("one two three", ["three", "two"]) == "one "
    assert cut_at("one two three", ["four"]) == "one two three"
    assert cut_at("one two three", []) == "one two three"


stop_strings = st.lists(
    st.one_of(
        st.sampled_from(["é", "th", "the", "🙂", "日本", " ", "\ufffd"]), st.text(min_size=1)
    ),
    max_size=3,
)
# Random tokens make half characters and bytes that are no text; those of a poem whole ones.
pieces_of_text = st.sampled_from([POEM[i:j] for i in range(len(POEM)) for j in (i + 3, i + 9)])


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[list[int]], list[str]]:
    """(runs of tokens, stop strings)."""
    runs = draw(st.lists(st.lists(st.integers(0, 299), max_size=6), max_size=12))
    return runs, draw(stop_strings)


def check_stream(codec: TextCodec, runs: list[list[int]], strings: list[str]) -> None:
    """What is shown is the final text piece by piece, and never more than that."""
    final = cut_at(codec.decode([token for run in runs for token in run]), strings)
    stream = TextStream(codec, strings)
    shown = ""
    for run in runs:
        shown += stream.push(run)
        assert final.startswith(shown)
    assert shown + stream.finish() == final == stream.text


@given(stream=streams())
def test_pieces_of_random_tokens_are_the_final_text(
    codec: TextCodec, stream: tuple[list[list[int]], list[str]]
) -> None:
    check_stream(codec, *stream)


@given(texts=st.lists(pieces_of_text, max_size=40), size=st.integers(1, 7), strings=stop_strings)
def test_pieces_of_a_text_are_the_final_text(
    codec: TextCodec, texts: list[str], size: int, strings: list[str]
) -> None:
    tokens = codec.encode("".join(texts) or "the")
    check_stream(codec, [tokens[i : i + size] for i in range(0, len(tokens), size)], strings)


def test_half_a_character_is_held_back(codec: TextCodec) -> None:
    first, *others = codec.encode("🙂")
    stream = TextStream(codec, [])
    assert stream.push([*codec.encode("the"), first]) == "the"
    assert stream.push(others) == "🙂"


def test_what_may_become_a_stop_string_is_held_back(codec: TextCodec) -> None:
    stream = TextStream(codec, ["END"])
    assert stream.push(codec.encode("an E")) == "an "
    assert stream.push(codec.encode("Na")) == "ENa"
    assert stream.push(codec.encode("EN")) == ""
    assert stream.push(codec.encode("D and more")) == ""
    assert stream.finish() == ""
    assert stream.text == "an ENa"


def test_a_long_answer_is_decoded_in_windows(codec: TextCodec) -> None:
    """A step of an answer of 10,000 tokens took 2 milliseconds to decode."""
    decoded: list[int] = []

    class Counted:
        def decode(self, tokens: list[int]) -> str:
            decoded.append(len(tokens))
            return codec.decode(tokens)

    stream = TextStream(Counted(), ["never"])
    tokens = codec.encode(POEM * 100)
    shown = "".join(stream.push([token]) for token in tokens)
    assert shown + stream.finish() == POEM * 100
    assert max(decoded) < 200 < len(tokens)


def test_a_vocabulary_maps_tokens_to_ids(codec: TextCodec) -> None:
    assert codec.vocabulary["<|eos|>"] == 1
    assert len(codec.vocabulary) == 300
    assert json.dumps(codec.vocabulary)


@pytest.mark.parametrize("change", [None, "tokenizer.json", "added_tokens.json"])
def test_vocabularies_from_the_same_files_are_known_to_be_alike(
    tmp_path: Path, change: str | None
) -> None:
    one, other = (write_tokenizer(tmp_path / name) for name in "ab")
    if change is not None:
        path = other / change
        path.write_text(f"{path.read_text() if path.exists() else '{}'} ")
    assert have_same_vocabulary(one, other) is (change is None)
    (one / "tokenizer.json").unlink()
    (other / "tokenizer.json").unlink()
    assert not have_same_vocabulary(one, other)
