"""The house stays small: who imports whom, how long files and functions are, what modules do."""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A file imports from what stands above it, or from its own room; what shares a row keeps apart.
FLOORS = [
    ["system"],
    ["model", "tokenizer", "weights"],
    ["data", "gpt_download"],
    ["adapters"],
    ["storage"],
    ["corpus"],
    ["generation"],
    ["reports"],
    ["exchange"],
    ["training"],
    ["benchmarks"],
    ["train", "generate", "export", "bench", "report", "playground"],
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
PATHS = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(
        [*ROOT.glob("*.py"), *(p for room in ROOMS for p in ROOT.glob(f"{room}/*.py"))]
    )
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}
MAX_TOP_FILES = 12
NAMED_IN_TUTORIALS = {"train", "model", "data", "tokenizer", "generate", "gpt_download"}
HEAVY = {
    "tensorflow",
    "matplotlib",
    "bokeh",
    "gradio",
    "tensorboard",
    "wandb",
    "transformers",
    "gguf",
    "safetensors",
}  # slow, seldom needed
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40
MAX_NESTING = 3
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try)


def imported_modules(nodes: Iterable[ast.AST]) -> set[str]:
    """Modules that the nodes import: `from corpus import text` is corpus.text."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & PATHS.keys()
            names |= inner or {node.module}
    return names


def is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imports_of_ours(name: str) -> set[str]:
    """What a module needs of ours; what it needs when it is run as a command does not count."""
    nodes = [node for node in TREES[name].body if not is_main_guard(node)]
    inner = [child for node in nodes for child in ast.walk(node)]
    return imported_modules(inner) & PATHS.keys()


def functions() -> dict[str, ast.FunctionDef]:
    """Every function of the repository, as `module.function`."""
    return {
        f"{name}.{node.name}:{node.lineno}": node
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def nesting(node: ast.AST) -> int:
    """How many blocks lie within each other; an `elif` is no deeper than its `if`."""
    depths = [0]
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        depths.append(nesting(child) + (isinstance(child, BLOCKS) and not is_elif))
    return max(depths)


def test_imports_run_one_way():
    for name in PATHS:
        room = name.split(".")[0]
        for other in imports_of_ours(name):
            other_room = other.split(".")[0]
            is_above = FLOOR_OF[other_room] < FLOOR_OF[room]
            assert is_above or (other_room == room and room in ROOMS), f"{name} imports {other}"


def test_no_room_has_a_circle():
    left = {name: imports_of_ours(name) for name in PATHS}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        left = {name: others for name, others in left.items() if name not in free}
    assert left == {}


def test_the_top_holds_only_what_a_user_runs_or_imports():
    at_the_top = {name for name in PATHS if "." not in name}
    assert NAMED_IN_TUTORIALS <= at_the_top <= FLOOR_OF.keys() - set(ROOMS)
    assert len(at_the_top) <= MAX_TOP_FILES


def test_every_room_says_which_question_it_answers():
    assert all(ast.get_docstring(TREES[f"{room}.__init__"]).endswith("?") for room in ROOMS)


def test_the_tests_have_the_rooms_of_the_product():
    folders = {path.parent.name for path in ROOT.glob("tests/*/test_*.py")}
    assert folders == set(ROOMS)


def test_heavy_packages_are_imported_only_where_they_are_needed():
    at_import = {
        name: {module.split(".")[0] for module in imported_modules(tree.body)} & HEAVY
        for name, tree in TREES.items()
    }
    assert {name for name, heavy in at_import.items() if heavy} == set()


def test_a_file_is_short_enough_to_read():
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in PATHS.items()}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_functions_are_short_enough_to_see_at_once():
    lengths = {name: node.end_lineno - node.lineno + 1 for name, node in functions().items()}
    too_long = {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}
    assert too_long == {}


def test_functions_are_not_nested_deeply():
    depths = {name: nesting(node) for name, node in functions().items()}
    assert {name: depth for name, depth in depths.items() if depth > MAX_NESTING} == {}


def is_free_of_work(node: ast.stmt) -> bool:
    """Whether a module's statement is an import, a constant, a definition or the guard."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
        return True
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = {name.id for name in ast.walk(ast.Tuple(targets)) if isinstance(name, ast.Name)}
        is_union = isinstance(getattr(node.value, "op", None), ast.BitOr)  # Ids = ndarray | Tensor
        is_type = is_union or isinstance(node.value, ast.Subscript)  # Callable[[Tensor], Tensor]
        return is_type or all(name.isupper() or name == "config" for name in names)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)  # the docstring


@pytest.mark.parametrize("name", PATHS)
def test_a_module_says_what_it_is_for_and_does_no_work_when_it_is_imported(name):
    assert ast.get_docstring(TREES[name])
    assert [ast.unparse(node) for node in TREES[name].body if not is_free_of_work(node)] == []


def test_importing_every_module_prints_nothing_writes_nothing_and_draws_nothing(
    tmp_path, run_python
):
    code = f"""
import sys, torch
state = torch.random.get_rng_state()
import {", ".join(PATHS)}
assert torch.equal(state, torch.random.get_rng_state())
assert set({sorted(HEAVY)}).isdisjoint(sys.modules), sys.modules.keys() & set({sorted(HEAVY)})
"""
    result = run_python("-W", "error", "-c", code, folder=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
