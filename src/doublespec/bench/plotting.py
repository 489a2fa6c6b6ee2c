"""matplotlib, from the extra `bench`: pages and pictures are drawn with it. The same figure gives
the same bytes."""

import io
from typing import Any, Literal

from doublespec.errors import ConfigError

try:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as pyplot
    from matplotlib.axes import Axes as Axes
    from matplotlib.patches import Patch as Patch
except ImportError as error:
    raise ConfigError(
        "pictures need matplotlib: install it with pip install 'doublespec[bench]'"
    ) from error

PictureFormat = Literal["svg", "png"]
INK = "#1c2430"


def saved(figure: Any, kind: PictureFormat, *, transparent: bool = False) -> bytes:
    """The figure as a file, without what changes from run to run; the figure is closed."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "doublespec", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, metadata=metadata, transparent=transparent, dpi=200)
    pyplot.close(figure)
    return buffer.getvalue()
