"""The package's shape: public names, light import, imports that point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import tts_agent

PACKAGE = Path(tts_agent.__file__).parent

LAYERS = [
    {"errors", "loop", "prefix", "usage", "thought", "budget", "events", "tree", "outcome", "task", "dialect"},
    {"engines", "verifiers", "dialects"},
    {"search", "trace", "pocket"},
    {"nodes", "middleware", "chat_models"},
    {"demo", "doctor", "cli"},
]
"""A module imports its own layer and those before it. `task` is a noun that knows how samples are drawn."""

ACROSS = {("task", "engines.base"), ("dialect", "engines.base")}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def imports(path: Path) -> set[str]:
    """Modules of ours that are imported when the file is."""
    known, found = modules(), set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tts_agent":
            module = node.module.removeprefix("tts_agent").lstrip(".")
            names = {f"{module}.{name.name}" for name in node.names}
            found |= {name if name in known else module for name in names}
    return found - {""}


def layer(module: str) -> int:
    head = module.split(".")[0]
    return next(level for level, names in enumerate(LAYERS) if head in names)


def test_public_names_are_few_sorted_and_there() -> None:
    assert list(tts_agent.__all__) == sorted(tts_agent.__all__)
    assert len(tts_agent.__all__) <= 30
    for name in tts_agent.__all__:
        assert getattr(tts_agent, name) is not None


def test_imports_point_one_way() -> None:
    for module, path in modules().items():
        if module in ("__init__", ""):
            continue
        for imported in imports(path):
            allowed = (module, imported) in ACROSS or layer(imported) <= layer(module)
            assert allowed, f"{module} imports {imported}, which stands above it"


def test_no_import_cycle() -> None:
    graph = {module: imports(path) for module, path in modules().items() if module not in ("__init__", "")}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join((*path[path.index(module) :], module))}"
        if module in done:
            return
        for imported in graph.get(module, ()):
            visit(imported, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_importing_the_package_is_light() -> None:
    heavy = ("torch", "transformers", "langgraph", "rich")
    code = f"import sys, tts_agent; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
