"""Names of models in, sources of weights out: a folder, a hub id, or random weights of a shape."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from doublespec.errors import ModelError, reason
from doublespec.models.configs import CONFIGS, built_in_config
from doublespec.models.outlines import decoder_config, read_config, read_outline
from doublespec.models.random_weights import RANDOM, RandomWeights
from doublespec.models.sizes import DecoderConfig
from doublespec.models.weights import Checkpoint, Source, missing_weight, open_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


def open_source(name: str) -> Source:
    """What a model's weights are read from: the checkpoint of that name, or for "random:SHAPE"
    random ones, SHAPE being one of CONFIGS or a config.json. Raises ModelError."""
    if not name.startswith(RANDOM):
        return open_checkpoint(name)
    config = find_shape(name)
    kind: str = config.model_type
    return RandomWeights(name, kind, decoder_config(config))


def find_shape(name: str) -> "PreTrainedConfig":
    """The configuration that random weights of that name have; raises ModelError."""
    shape = name.removeprefix(RANDOM)
    if shape in CONFIGS:
        return built_in_config(shape)
    path = Path(shape).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        known = ", ".join(CONFIGS)
        raise ModelError(
            f"the shape of random weights must be one of {known}, or the path of a config.json, "
            f"got {shape!r}"
        )
    return read_config(path)


def open_checkpoint(name: str) -> Checkpoint:
    """The checkpoint in a local folder or on the Hugging Face hub; raises ModelError."""
    folder = find_folder(name)
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json; a Hugging Face model folder is expected")
    outline = read_outline(path)
    kind, ours = outline.model_type, outline.decoder
    checkpoint = Checkpoint(folder, kind, outline.vocab_size, ours, _weight_files(folder))
    if ours is not None:
        _check_small_parts(checkpoint, ours)
    return checkpoint


def _check_small_parts(checkpoint: Checkpoint, config: DecoderConfig) -> None:
    """Raises ModelError where a bias or a norm is missing that the configuration says is there.
    (Products are missed when they are read.)"""
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    parts = [
        f"{'self_attn' if part in attention else 'mlp'}.{part}.bias"
        for part in sorted(config.biases)
    ]
    if checkpoint.model_type == "qwen3":
        parts += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
    names = (f"model.layers.{i}.{part}" for i in range(config.num_layers) for part in parts)
    missing = next((name for name in names if not checkpoint.has(name)), None)
    if missing is not None:
        raise missing_weight(checkpoint.folder, missing)


def find_folder(name: str) -> Path:
    """The local folder of a model, downloaded from the hub if `name` is a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ModelError(f"there is no folder {name!r}, and it is not a hub id like 'org/model'")
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError) as error:
        raise ModelError(
            f"{name!r} is neither a folder nor a model that the Hugging Face hub gives: "
            f"{reason(error)}"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{name!r} is no folder here, and the Hugging Face hub cannot be reached: give a local "
            "folder, or download the model once while online"
        ) from error


def _weight_files(folder: Path) -> dict[str, str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _indexed_files(index)
    single = folder / "model.safetensors"
    if not single.is_file():
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        hint = "; pickled weights are not read, convert them to safetensors" if pickled else ""
        if any(folder.glob("*.gguf")):
            hint = "; weights in the format GGUF are not read, choose the checkpoint they are from"
        raise ModelError(f"{folder} has no weights (model.safetensors){hint}")
    with open_tensors(single) as file:
        return dict.fromkeys(file.keys(), single.name)


def _indexed_files(index: Path) -> dict[str, str]:
    try:
        files = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{index} is not an index of safetensors files") from error
    missing = sorted(name for name in set(files.values()) if not (index.parent / name).is_file())
    if missing:
        raise ModelError(f"{index.parent} lacks {missing[0]}, which its index names")
    return files
