"""The house stays small: who imports whom, how long files and functions are, what modules do."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PATHS = {path.stem: path for path in sorted(ROOT.glob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}

# What each module imports of ours. A module imports only from the rows above it.
IMPORTS = {
    "tokenizer": "",
    "text": "tokenizer",
    "files": "",
    "archive": "",
    "fetch": "",
    "settings": "",
    "runtime": "",
    "vocabulary": "",
    "kv_cache": "",
    "loss": "",
    "optim": "",
    "weights": "",
    "textstats": "",
    "data": "files text tokenizer",
    "corpus": "data text tokenizer vocabulary",
    "model": "kv_cache",
    "metrics": "files",
    "room": "files",
    "checkpoint": "archive files model",
    "folder": "checkpoint files",
    "gpt_download": "fetch",
    "pretrained": "gpt_download model settings weights",
    "sampling": "runtime",
    "replay": "kv_cache model runtime",
    "decoding": "kv_cache model replay sampling",
    "beam": "decoding model sampling",
    "writing": "sampling tokenizer",
    "inference": "model runtime",
    "scoring": "model tokenizer",
    "comparison": "corpus files scoring text textstats tokenizer writing",
    "console": "checkpoint comparison inference model settings tokenizer writing",
    "generate": "beam checkpoint comparison console decoding inference model pretrained "
    "runtime sampling scoring tokenizer writing",
    "run": "checkpoint corpus data folder generate loss metrics model optim room runtime "
    "settings tokenizer vocabulary writing",
    "resume": "checkpoint folder metrics pretrained run runtime text tokenizer",
    "train": "checkpoint comparison files generate inference pretrained resume run runtime "
    "settings",
    "merges": "tokenizer",
    "gguf_file": "checkpoint files merges model tokenizer weights",
    "export": "checkpoint files generate gguf_file merges metrics model runtime settings "
    "tokenizer weights",
    "duel": "runtime",
    "contestants": "duel loss model optim runtime vocabulary",
    "bench_generate": "contestants decoding duel gguf_file inference model runtime sampling "
    "weights",
    "bench": "bench_generate contestants duel runtime settings",
}
SCRIPTS = {"train", "bench", "export"}  # commands that nothing imports
UNWANTED = {"utils", "config", "trainer", "helpers", "common"}  # names that say nothing
HEAVY = {"tensorflow", "matplotlib", "transformers", "gguf", "safetensors"}  # slow, seldom needed
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40
MAX_NESTING = 3
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try)


def imported_names(nodes: Iterator[ast.AST]) -> set[str]:
    """Top-level names of the modules that the nodes import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


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


# ---------------------------------------------------------------- who imports whom


def test_every_module_imports_what_the_table_says():
    found = {name: imported_names(ast.walk(tree)) & PATHS.keys() for name, tree in TREES.items()}
    assert found == {name: set(names.split()) for name, names in IMPORTS.items()}


def test_the_table_has_no_circle():
    order = list(IMPORTS)
    for name, names in IMPORTS.items():
        assert set(names.split()) <= set(order[: order.index(name)]), name


def test_nothing_imports_a_script():
    imported = {name for names in IMPORTS.values() for name in names.split()}
    assert imported & SCRIPTS == set()


def test_every_module_name_says_something():
    assert PATHS.keys() & UNWANTED == set()


def test_heavy_packages_are_imported_only_where_they_are_needed():
    at_import = {name: imported_names(tree.body) & HEAVY for name, tree in TREES.items()}
    assert {name for name, heavy in at_import.items() if heavy} == set()


# ---------------------------------------------------------------- how long


@pytest.mark.parametrize("name", PATHS)
def test_a_file_is_short_enough_to_read(name):
    assert len(PATHS[name].read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


def test_functions_are_short_enough_to_see_at_once():
    lengths = {name: node.end_lineno - node.lineno + 1 for name, node in functions().items()}
    too_long = {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}
    assert too_long == {}


def test_functions_are_not_nested_deeply():
    depths = {name: nesting(node) for name, node in functions().items()}
    assert {name: depth for name, depth in depths.items() if depth > MAX_NESTING} == {}


# ---------------------------------------------------------------- what a module does


def is_free_of_work(node: ast.stmt) -> bool:
    """Whether a module's statement is an import, a constant, a definition or the guard."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
        return True
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "__name__ == '__main__'"
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = {name.id for name in ast.walk(ast.Tuple(targets)) if isinstance(name, ast.Name)}
        is_type = isinstance(node.value, ast.Subscript)  # Linear = Callable[[Tensor], Tensor]
        return is_type or all(name.isupper() or name == "config" for name in names)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)  # the docstring


@pytest.mark.parametrize("name", PATHS)
def test_a_module_body_has_imports_constants_definitions_and_the_guard(name):
    assert [ast.unparse(node) for node in TREES[name].body if not is_free_of_work(node)] == []


@pytest.mark.parametrize("name", PATHS)
def test_a_module_begins_by_saying_what_it_is_for(name):
    assert ast.get_docstring(TREES[name])


def test_the_files_that_tutorials_name_are_here():
    named = {"train", "model", "data", "tokenizer", "generate", "gpt_download"}
    assert named <= PATHS.keys()


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
