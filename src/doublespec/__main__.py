"""The `doublespec` command, also as `python -m doublespec`."""

import os
import signal


def main() -> None:
    """Runs a command. Ctrl-C ends the process at once, and silently, until all is imported."""
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from doublespec.cli import main as run

    signal.signal(signal.SIGINT, interrupt)
    run()


def _leave(*_: object) -> None:
    os._exit(130)


if __name__ == "__main__":
    main()
