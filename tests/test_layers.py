"""Imports go one way only, room by room: a module imports from its own room and from those below.

Read from the syntax tree, so that imports inside functions count. Annotations need no import at
run time: what stands under ``if TYPE_CHECKING`` counts for the order of rooms too, and only the
rules on torch and pyarrow leave it out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {"vlmbatch": ROOT / "vlmbatch", "vlmbatch_kernels": ROOT / "kernels/vlmbatch_kernels"}

# From the door down. Rooms that stand beside each other do not know each other.
LAYERS: list[set[str]] = [
    {"vlmbatch.__main__"},
    {"vlmbatch.cli"},
    {"vlmbatch.commands"},
    {"vlmbatch.ray"},
    {"vlmbatch.serve", "vlmbatch.bench", "vlmbatch.api"},
    {"vlmbatch.jobs"},
    {"vlmbatch.display", "vlmbatch.report", "vlmbatch.stages"},
    {"vlmbatch.session"},
    {"vlmbatch.hf"},
    {"vlmbatch.replicas"},
    {"vlmbatch.output"},
    {"vlmbatch.manifest"},
    {"vlmbatch.openai", "vlmbatch.nvjpeg"},
    {"vlmbatch.images", "vlmbatch.engine"},
    {"vlmbatch.costs"},
    {"vlmbatch.models"},
    {"vlmbatch.durable"},
    {"vlmbatch.remote"},
    {"vlmbatch.attention"},
    {"vlmbatch_kernels"},
]
# What all stand on.
GROUND = {
    "vlmbatch",
    "vlmbatch.config",
    "vlmbatch.errors",
    "vlmbatch.log",
    "vlmbatch.processes",
    "vlmbatch.start_times",
    "vlmbatch.stats",
    "vlmbatch.types",
}
# With all that they import. Above them, only what is imported on start has to do without torch.
TORCH_FREE = (
    "vlmbatch.config",
    "vlmbatch.costs",
    "vlmbatch.durable",
    "vlmbatch.engine.scheduler",
    "vlmbatch.engine.block_pool",
    "vlmbatch.images",
    "vlmbatch.manifest",
    "vlmbatch.openai",
    "vlmbatch.output",
    "vlmbatch.remote",
)


@dataclass(frozen=True)
class Import:
    target: str
    line: int
    local: bool  # inside a function: done when it is called
    typing: bool  # under ``if TYPE_CHECKING``: never done


def module_files() -> dict[str, Path]:
    files = {}
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            files[".".join((package, *parts))] = path
    return files


def imports_of(module: str, path: Path, modules: set[str]) -> Iterator[Import]:
    """Every import of a module; ``from package import module`` counts as one of the module."""

    def visit(node: ast.AST, local: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, local, typing)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                for _ in range(node.level - 1):
                    package = package.rpartition(".")[0]
                base = f"{package}.{base}".rstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(full if full in modules else base, node.lineno, local, typing)
        local = local or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            guarded = isinstance(node, ast.If) and child in node.body and _is_type_checking(node)
            yield from visit(child, local, typing or guarded)

    yield from visit(ast.parse(path.read_text()), local=False, typing=False)


def _is_type_checking(node: ast.If) -> bool:
    test = node.test
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


FILES = module_files()


@cache
def graph_of_imports() -> dict[str, list[Import]]:
    """The imports of every module; no test of other files waits for them."""
    graph = {name: list(imports_of(name, path, set(FILES))) for name, path in FILES.items()}
    # What the package exports is imported when it is first asked for, by whoever uses it.
    graph["vlmbatch"] = [item for item in graph["vlmbatch"] if not item.typing]
    return graph


def room_of(module: str) -> str:
    """``vlmbatch.output`` for its modules."""
    return (
        ".".join(module.split(".")[:2]) if module.startswith("vlmbatch.") else module.split(".")[0]
    )


def layer_of(module: str) -> int | None:
    """Index of the module's layer; None for the ground, which imports no layer."""
    room = room_of(module)
    if room in GROUND:
        return None
    return next(index for index, rooms in enumerate(LAYERS) if room in rooms)


def upward(graph: dict[str, list[Import]]) -> list[str]:
    wrong = []
    for module, imports in graph.items():
        mine = layer_of(module)
        for item in imports:
            if item.target not in graph:
                continue
            theirs = layer_of(item.target)
            if theirs is None:
                continue
            sideways = theirs == mine and room_of(module) != room_of(item.target)
            if mine is None or theirs < mine or sideways:
                wrong.append(f"{module}:{item.line} imports {item.target}")
    return wrong


def cycle(graph: dict[str, list[Import]]) -> list[str]:
    """One chain of imports that comes back to its start, or nothing."""
    done: set[str] = set()

    def search(module: str, chain: list[str]) -> list[str]:
        if module in chain:
            return [*chain[chain.index(module) :], module]
        if module in done:
            return []
        for item in graph.get(module, []):
            if item.target != module and (found := search(item.target, [*chain, module])):
                return found
        done.add(module)
        return []

    for module in graph:
        if found := search(module, []):
            return found
    return []


def paths_to(package: str, start: str, *, count_local: bool = True) -> list[str]:
    """Chains of imports from ``start`` that end in ``package``, one for each importing module."""
    graph = graph_of_imports()
    chains, seen, queue = [], {start}, [[start]]
    while queue:
        chain = queue.pop()
        for item in graph[chain[-1]]:
            if item.typing or (item.local and not count_local):
                continue
            if item.target.partition(".")[0] == package:
                chains.append(" -> ".join([*chain, item.target]))
            elif item.target in graph and item.target not in seen:
                seen.add(item.target)
                queue.append([*chain, item.target])
    return chains


def test_every_room_has_its_layer() -> None:
    rooms = {room_of(module) for module in FILES}
    assert rooms == GROUND.union(*LAYERS)


def test_imports_go_downward() -> None:
    assert upward(graph_of_imports()) == []


def test_there_is_no_cycle() -> None:
    assert cycle(graph_of_imports()) == []


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith(TORCH_FREE)])
def test_never_reaches_torch(module: str) -> None:
    assert paths_to("torch", module) == []


@pytest.mark.parametrize("module", [name for name in FILES if room_of(name) == "vlmbatch.durable"])
def test_what_survives_a_crash_never_reaches_pyarrow(module: str) -> None:
    assert paths_to("pyarrow", module) == []


@pytest.mark.parametrize("module", ["vlmbatch.cli", "vlmbatch.__main__"])
def test_the_command_line_starts_without_torch(module: str) -> None:
    assert paths_to("torch", module, count_local=False) == []


def _parsed(module: str, source: str, folder: Path) -> dict[str, list[Import]]:
    path = folder / "module.py"
    path.write_text(source)
    return {**graph_of_imports(), module: list(imports_of(module, path, set(FILES)))}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vlmbatch.attention.base", "def f():\n    from vlmbatch.models import config\n"),
        ("vlmbatch.engine.scheduler", "from vlmbatch.jobs import run\n"),
        ("vlmbatch.engine.scheduler", "from vlmbatch.images import decode\n"),
        ("vlmbatch.manifest.columns", "from ..output import schema\n"),
        ("vlmbatch.config.engine", "import vlmbatch.cli\n"),
    ],
)
def test_an_upward_import_is_found(module: str, source: str, tmp_path: Path) -> None:
    assert len(upward(_parsed(module, source, tmp_path))) == 1


def test_a_cycle_through_a_local_import_is_found(tmp_path: Path) -> None:
    graph = _parsed("vlmbatch.errors", "def f():\n    import vlmbatch.types\n", tmp_path)
    assert {"vlmbatch.types", "vlmbatch.errors"} <= set(cycle(graph))
