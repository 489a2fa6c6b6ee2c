"""Write a run's averaged weights as a Hugging Face folder in bf16."""

from pathlib import Path
from typing import Annotated

import typer
from safetensors.torch import load_file

from training import model as llama


def main(
    run: Annotated[Path, typer.Option(help="folder of the run's checkpoint")],
    like: Annotated[Path, typer.Option(help="folder whose configuration and tokenizer to keep")],
    out: Annotated[Path, typer.Option(help="folder to write, whole or not at all")],
) -> None:
    """Export the moving average of the weights, which is steadier than the last step's."""
    tensors = load_file(run / "checkpoint.safetensors")
    prefix = "average."
    average = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    llama.save(average, like, out)
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
