"""The order of rooms (docs/architecture.md): a file imports only from rooms before it."""

import ast
from pathlib import Path

import doublespec

ROOMS = (
    "errors",
    "kept",
    "mutex",
    "config",
    "tokens",
    "ratio",
    "transfer",
    "compiled",
    "noise",
    "sampling",
    "models",
    "retrieval",
    "oracle",
    "drafting",
    "stopping",
    "scheduling",
    "decoding",
    "methods",
    "engine",
    "stats",
    "trace",
    "text",
    "llm",
    "bench",
    "cli",
)
PACKAGE = Path(doublespec.__file__).parent


def _room(module: str) -> str:
    return module.removeprefix("doublespec.").split(".")[0]


def _imports(path: Path) -> set[str]:
    """The doublespec modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name.startswith("doublespec.")}


def _files() -> list[tuple[str, Path]]:
    paths = (
        path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem[0] != "_"
    )
    return [(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path) for path in paths]


def test_no_import_points_against_the_order_of_rooms() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for room, path in _files()
        for module in _imports(path)
        if ROOMS.index(_room(module)) > ROOMS.index(room)
    ]
    assert wrong == []


def test_every_file_is_in_a_room() -> None:
    assert {room for room, _ in _files()} == set(ROOMS)


def test_only_the_rooms_of_numbers_know_torch() -> None:
    """Elsewhere tokens are Python ints; bench and cli report on tensors' devices."""
    users = {room for room, path in _files() if "import torch" in path.read_text(encoding="utf-8")}
    assert users <= {"transfer", "noise", "sampling", "models", "drafting", "bench", "cli"}
