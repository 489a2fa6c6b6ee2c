"""Where figures come from: what somebody needs to get them again."""

import hashlib
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from doublespec.llm import LLM
from doublespec.models.checkpoints import find_shape
from doublespec.models.devices import describe, usable_cores
from doublespec.models.random_weights import RANDOM

_PACKAGES = ("doublespec", "torch", "transformers", "tokenizers", "numpy")


def provenance() -> dict[str, object]:
    """Versions, command, revision and CPU; nothing in it changes from run to run."""
    return {
        "command": " ".join(["doublespec", *sys.argv[1:]]),
        "revision": git_revision(),
        "versions": {"python": platform.python_version()} | _versions(),
        "cpu": describe(torch.device("cpu")),
        "cores": usable_cores(),
    }


def model_provenance(llm: LLM) -> dict[str, object]:
    """Device, precision, quantisation and kernels of the target, whether steps are recorded,
    threads, fingerprints of the models."""
    device = llm.target.device
    names = [llm.target_name] + ([llm.recipe.source.name] if llm.recipe else [])
    return {
        "device": describe(device),
        "ranks": len(llm.settings.target_devices),
        "dtype": str(llm.target.dtype).removeprefix("torch."),
        "quantize": llm.settings.quantize,
        "kernels": llm.kernels,
        "graphs": llm.settings.graphs,
        "threads": _threads(llm),
        "models": [{"name": name, "sha256": fingerprint(name)} for name in names],
    }


def _threads(llm: LLM) -> int | str:
    """How many the target uses: with a draft at work, and at most without."""
    if llm.threads is None:
        return torch.get_num_threads()
    return f"{llm.threads.usual} to {llm.threads.every}"


def fingerprint(name: str) -> str:
    """A hash of a checkpoint's configuration and of its weights' sizes and first and last bytes, or
    of the configuration of random weights; "" if the folder is not there (a hub id)."""
    if name.startswith(RANDOM):
        return hashlib.sha256(find_shape(name).to_json_string().encode()).hexdigest()[:16]
    digest, folder = hashlib.sha256(), Path(name)
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")]):
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}:".encode())
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:16] if folder.is_dir() else ""


def git_revision() -> str | None:
    """The revision of the source tree that runs, "+" after it if files differ; None where there is
    none."""
    folder = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
