"""Several processes train as one does: real torchrun starts, each for a group of claims."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from launching import CHANGES, launch
from parallel_life import lead, rows_and_model
from safetensors.torch import load_file
from test_notebook import SNIPPET
from tiny_run import canonical, prepare, train_quickly
from torch.nn import functional as F

from reports import plot
from storage import checkpoint, run_folder, sharded
from system.errors import CheckpointError

SHORT = {**CHANGES, "num_epochs": 4, "eval_freq": 2}
ADAPTER_FILE = "adapter/adapter_model.safetensors"
NUM_STEPS = 102
FILE = "alone/model_checkpoint_step_99.pt"
PARTS = "fsdp 2/model_checkpoint_step_99.sharded"
STEPS = [Path(f"model_checkpoint_step_{step}.sharded") for step in (102, 99)]
MUON = {**CHANGES, "optimizer": "muon", "num_epochs": 2, "learning_rate": 0.03}
TAUGHT = {**MUON, "generations": 2}
LORA = {**SHORT, "adapter": "lora", "lora_rank": 2, "lora_dropout": 0.2, "learning_rate": 1e-2}
LORA_PARTS = "lora fsdp 2/model_checkpoint_step_18.sharded"
FEW_BITS = {**LORA, "base_precision": "int8"}
KILLED = {"output_dir": "killed", "faults": [{"do": "kill", "ranks": [0, 1], "step": 80}]}
BY_FOUR = [
    {"output_dir": "killed 4", "resume": True},
    {"output_dir": "from parts 4", "resume": PARTS, "parallel": "fsdp"},
    {"output_dir": "from a file 4", "resume": FILE, "parallel": "fsdp"},
    {**LORA, "output_dir": "lora 4", "resume": LORA_PARTS},
]
PIECES = [(8, 8), (8, 2), (7, 3), (5, 2), (1, 1)]  # rows, and how many of them at once


def faults_of_memory(seed: int) -> list[dict]:
    """Lacks of memory at 20 random steps of 24, in random processes and parts of the model."""
    draw = random.Random(seed)
    parts = ["input_embedding.embedding", "positional_encoding.dropout", "loss"]
    parts += [f"blocks.0.{name}" for name in ("attention", "feed_forward.expand", "attention_norm")]
    return [
        {
            "do": "full",
            "how": {
                "when": draw.choice(["forward", "backward", "evaluation"]),
                "part": draw.choice(parts),
            },
            "ranks": draw.choice([[0], [1], [0, 1]]),
            "step": step,
        }
        for step in draw.sample(range(24), 20)
    ]


def rows_of(folder: Path) -> list[list]:
    """The rows of every update, put together from what each process has noted.

    Before the first update that of its batch has been timed twice.
    """
    logs = [path.read_text().splitlines()[2:] for path in sorted(folder.glob("rows-*.log"))]
    return [
        [row for line in lines for row in json.loads(line)] for lines in zip(*logs, strict=True)
    ]


def state_of(folder: Path) -> dict:
    return checkpoint.load(folder / checkpoint.FINAL_NAME)


def check_same_curve(folder: Path, expected: Path, *, atol: float = 1e-5) -> None:
    """Losses, evaluations and weights agree to float32 sums in another order."""
    found, wanted = state_of(folder), state_of(expected)
    losses = [state["history"]["train_losses"] for state in (found, wanted)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    for ours, theirs in zip(
        found["history"]["evaluations"], wanted["history"]["evaluations"], strict=True
    ):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for name, weight in wanted["model_state_dict"].items():
        torch.testing.assert_close(found["model_state_dict"][name], weight, rtol=0, atol=atol)


def by_two() -> list[dict]:
    """What two processes do, one after the other."""
    tasks = [
        {"output_dir": "ddp 2"},
        {"output_dir": "fsdp 2", "parallel": "fsdp"},
        {"output_dir": "killed 2", "resume": True},
        {"output_dir": "muon ddp 2", **MUON},
        {"output_dir": "taught ddp 2", **TAUGHT},
        {"output_dir": "muon fsdp 2", **MUON, "parallel": "fsdp"},
        {"output_dir": "lora ddp 2", **LORA},
        {"output_dir": "lora fsdp 2", **LORA, "parallel": "fsdp"},
        {"output_dir": "few bits ddp 2", **FEW_BITS},
        {"output_dir": "few bits fsdp 2", **FEW_BITS, "parallel": "fsdp"},
    ]
    for way, seed in (("ddp", 0), ("fsdp", 1)):
        own = {**SHORT, "parallel": way}
        tasks.append({**own, "output_dir": f"full {way}", "faults": faults_of_memory(seed)})
        tasks.append({**own, "output_dir": f"apart {way}", "mask_documents": True})
        for kind, more in (("gradients", {"cases": PIECES}), ("overflow", {})):
            tasks.append({kind: {"path": f"{kind} of {way}", "parallel": way, **more}})
    return tasks


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs by 1, 2 and 4 processes, one killed among them."""
    here, home = Path.cwd(), tmp_path_factory.mktemp("a team, äöü")
    prepare(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "plot_history", lambda path, *shown: None)
        lead(**CHANGES, output_dir="alone")
        lead(**MUON, output_dir="muon alone")
        lead(**TAUGHT, output_dir="taught alone")
        lead(**LORA, output_dir="lora alone")
        lead(**FEW_BITS, output_dir="few bits alone")
        lead(**SHORT, output_dir="short")
        lead(**SHORT, output_dir="apart", mask_documents=True)
    assert launch(2, KILLED).code != 0
    for name in ("killed 2", "killed 4"):
        shutil.copytree("killed", name)
    for num_processes, trainings in ((2, by_two()), (4, BY_FOUR)):
        end = launch(num_processes, *trainings)
        assert end.code == 0, end.stderr[-5000:]
    os.chdir(here)
    return home


@pytest.mark.parametrize("name", ["ddp 2", "fsdp 2"])
def test_any_number_of_processes_takes_the_same_rows_to_the_same_curve(home, name):
    assert len(rows_of(home / "alone")) == NUM_STEPS
    assert rows_of(home / name) == rows_of(home / "alone")
    check_same_curve(home / name, home / "alone")


@pytest.mark.slow
def test_so_do_four_from_the_first_step_to_the_last(home, place):
    assert launch(4, {"output_dir": "ddp 4"}).code == 0
    assert rows_of(place / "ddp 4") == rows_of(home / "alone")
    check_same_curve(place / "ddp 4", home / "alone")


@pytest.mark.parametrize("name", ["muon ddp 2", "muon fsdp 2"])
def test_muon_updates_whole_matrices_wherever_their_parts_lie(home, name):
    check_same_curve(home / name, home / "muon alone")


def test_each_process_has_a_teacher_of_its_own(home):
    two, one = (
        checkpoint.load(home / name / "model_checkpoint_step_12.pt")
        for name in ("taught ddp 2", "taught alone")
    )
    assert two["generations"]["first_steps"] == one["generations"]["first_steps"] == [0, 6]
    losses = [state["history"]["train_losses"] for state in (two, one)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "name", ["lora ddp 2", "lora fsdp 2", "lora 4", "few bits ddp 2", "few bits fsdp 2"]
)
def test_adapters_learn_the_same_wherever_they_and_their_base_lie(home, name):
    alone = "lora alone" if name.startswith("lora") else "few bits alone"
    check_same_curve(home / name, home / alone)
    ours, theirs = (load_file(home / run / ADAPTER_FILE) for run in (name, alone))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    learned = [weight.abs().max() for key, weight in ours.items() if "lora_B" in key]
    assert min(learned) > 1e-3


def test_killed_and_resumed_by_as_many_it_ends_in_the_same_bits(home):
    ends = [state_of(home / name) for name in ("killed 2", "ddp 2")]
    for key in ("model_state_dict", "history", "step"):
        assert len({canonical(end[key]) for end in ends}) == 1, key


@pytest.mark.parametrize("name", ["killed 4", "from parts 4", "from a file 4"])
def test_what_few_or_one_have_saved_goes_on_with_more(home, name):
    check_same_curve(home / name, home / "alone")


def test_what_several_have_saved_in_parts_goes_on_alone(home, place, monkeypatch):
    monkeypatch.chdir(home)
    train_quickly(**CHANGES, output_dir="from parts 1", resume=PARTS)
    check_same_curve(home / "from parts 1", home / "alone")


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_memory_that_runs_out_at_random_places_changes_no_weight(home, way):
    """Each time torch's own error is met; the pieces get smaller, then recomputed."""
    check_same_curve(home / f"full {way}", home / "short", atol=1e-6)
    memory = run_folder.newest_intact(home / f"full {way}")[1]["memory"]
    assert memory == {"piece_size": 1, "evaluation_size": 1, "checkpoint_activations": True}


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_several_read_each_document_alone_as_one_does(home, way):
    check_same_curve(home / f"apart {way}", home / "apart")
    losses = [state_of(home / name)["history"]["train_losses"] for name in ("apart", "short")]
    assert not torch.allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_however_the_rows_are_divided_their_gradients_are_those_of_the_batch(home, way):
    found = torch.load(home / f"gradients of {way}")
    for (num_rows, _), gradients in zip(PIECES, found, strict=True):
        (inputs, targets, seeds), model = rows_and_model(num_rows)
        logits = model.head(model.hidden_states(inputs, seeds=seeds))
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        expected = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_an_overflow_of_float16_in_one_process_is_one_in_all(home, way):
    first, second = json.loads((home / f"overflow of {way}").read_text())
    assert first == second
    scales, is_applied, losses = zip(*first, strict=True)
    assert scales == (1024, 512, 512, 1024)
    assert is_applied == (True, False, True, True)
    assert losses[0] > losses[1] == losses[2] > losses[3]


def test_the_notebook_snippet_runs_on_what_spread_weights_have_ended_in(home, monkeypatch):
    monkeypatch.chdir(home / "fsdp 2")
    exec(SNIPPET, cells := {})
    expected = state_of(home / "alone")["model_state_dict"]
    torch.testing.assert_close(dict(cells["model"].state_dict()), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda new, old: flip_a_bit(new / "__1_0.distcp"), "part __1_0.distcp is not what was"),
        (lambda new, old: flip_a_bit(new / ".metadata"), "part .metadata is not what was written"),
        (lambda new, old: flip_a_bit(new / "state.pt"), "not an intact checkpoint"),
        (lambda new, old: (new / "__0_0.distcp").unlink(), "part __0_0.distcp is missing"),
        (lambda new, old: shutil.copy(old / "__1_0.distcp", new), "part __1_0.distcp is not what"),
        (lambda new, old: shutil.copy(old / "state.pt", new), "part .* is not what was written"),
        (lambda new, old: shutil.copy(old / "__1_0.distcp", new / "more"), "part more is not of"),
    ],
)
def test_a_damaged_part_is_named_and_the_checkpoint_before_it_goes_on(home, tmp_path, damage, said):
    steps = [shutil.copytree(home / "fsdp 2" / path.name, tmp_path / path.name) for path in STEPS]
    damage(*steps)
    with pytest.raises(CheckpointError, match=said):
        sharded.load(steps[0])
    path, state, skipped = run_folder.newest_intact(tmp_path)
    assert (path, state["step"]) == (steps[1], 99)
    assert len(skipped) <= 1  # with the state of the older one it is as old


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.slow
def test_several_compiled_processes_read_each_document_alone_as_one_does(home, place):
    changes = {**SHORT, "output_dir": "run", "mask_documents": True, "compile": "on"}
    end = launch(2, changes, TEST_SECONDS="270")
    assert end.code == 0, end.stderr[-3000:]
    assert "not compiled" not in end.stderr
    check_same_curve(place / "run", home / "apart")


@pytest.mark.slow
def test_a_launcher_that_starts_again_goes_on_from_the_newest_checkpoint(home, place):
    fault = {"do": "kill", "ranks": [1], "step": 20, "only_first": True}
    training = {"output_dir": "run", "resume": True, "faults": [fault]}
    end = launch(2, training, options=("--max-restarts=2",))
    assert end.code == 0, end.stderr[-3000:]
    assert "no checkpoint is there yet: the run starts from its beginning" in end.stdout
    assert "resumed   run/model_checkpoint_step_18.pt at step 18 of 102" in end.stdout
    check_same_curve(place / "run", home / "alone")
