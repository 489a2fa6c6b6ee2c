"""Training-free, bit-exact acceleration of large language models.

from doublespec import LLM

with LLM("bundled", "bundled") as llm:
    print(llm.generate("Once upon a time", max_tokens=40).text)
"""

import gc
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from doublespec.errors import ConfigError, DatastoreError, DoubleError, ModelError
    from doublespec.llm import LLM, Completion, Stream
    from doublespec.methods import METHODS
    from doublespec.sampling import SamplingParams
    from doublespec.stats import Stats

__all__ = [
    "LLM",
    "METHODS",
    "Completion",
    "ConfigError",
    "DatastoreError",
    "DoubleError",
    "ModelError",
    "SamplingParams",
    "Stats",
    "Stream",
]

__version__ = "0.1.0"

_HOMES = {"LLM": "llm", "Completion": "llm", "Stream": "llm", "METHODS": "methods"}
_HOMES |= {"SamplingParams": "sampling", "Stats": "stats"}

if not TYPE_CHECKING:

    def __getattr__(name):
        """Imports what is asked for: with torch it takes a second, in which the command must be
        able to end, and which a draft's process need not spend on the rest. Meanwhile no garbage
        is looked for, which would take another one."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
        finally:
            if was_enabled:
                gc.enable()

    def __dir__():
        return sorted({*globals(), *__all__})
