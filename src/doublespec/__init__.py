"""Training-free, bit-exact acceleration of large language models.

from doublespec import LLM

with LLM("bundled", "bundled") as llm:
    print(llm.generate("Once upon a time", max_tokens=40).text)
"""

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
