"""The errors a user can cause. Each message says what was expected, what came and what to do."""


class DoubleError(Exception):
    """Anything a user can cause and mend; the command line prints it as one sentence."""


class ConfigError(DoubleError):
    """A parameter or a combination of options that cannot work."""


class ModelError(DoubleError):
    """A checkpoint that cannot be found, read, or used with the other one."""


class DatastoreError(DoubleError):
    """A datastore that cannot be built, opened, or used with this tokenizer."""


def reason(error: Exception) -> str:
    """The first line of what a library's error says, with the next one behind a colon: its own
    stack is of no use to a user."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {others[0].strip()}" if others and first.endswith(":") else first
