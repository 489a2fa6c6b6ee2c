"""The `doublespec` command, also as `python -m doublespec`."""

import gc
import os
import signal


def main() -> None:
    """Runs a command. Ctrl-C ends the process at once, and silently, until all is imported; and no
    garbage is looked for, of which imports make hardly any: that would take a fourth of the time.
    """
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    gc.disable()
    from doublespec.cli import main as run

    gc.freeze()  # what was imported is looked at no more
    gc.enable()
    signal.signal(signal.SIGINT, interrupt)
    run()


def _leave(*_: object) -> None:
    os._exit(130)


if __name__ == "__main__":
    main()
