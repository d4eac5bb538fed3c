"""Runs in which little learns: what their files hold, resumed ones, and what is refused."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_notebook import SNIPPET
from test_resume import stop_before
from tiny_run import canonical, fingerprint, prepare, start_weights, train_quickly

from adapters.lora import base_id
from exchange import adapter_files
from exchange.pretrained import from_safetensors
from storage import checkpoint, run_folder
from system.errors import CheckpointError, ConfigError
from training.capacity import Learning, num_parameters

LORA = {"adapter": "lora", "lora_rank": 2, "lora_dropout": 0.2, "learning_rate": 1e-2}
WHOLE = {"freeze": "input_embedding, attention", "learning_rate": 1e-2}

pytestmark = pytest.mark.usefixtures("place")


def step_files(folder: Path = Path()) -> list[Path]:
    return sorted(folder.glob("model_checkpoint_step_*.pt"), key=lambda path: len(path.name))


@pytest.mark.parametrize("changes", [LORA, {**LORA, "optimizer": "muon"}, WHOLE])
@pytest.mark.parametrize("average", [pytest.param("", marks=pytest.mark.slow), "ema"])
def test_stopped_and_resumed_it_is_the_run_that_never_stopped(place, monkeypatch, changes, average):
    changes = {**changes, "average_weights": average}
    expected = fingerprint(train_quickly(**changes))
    prepare(place / "stopped")
    stop_before(monkeypatch, 7, **changes)
    assert fingerprint(train_quickly(resume=True, **changes)) == expected


def test_published_weights_are_tuned_resumed_and_merged(place, monkeypatch, capsys):
    changes = {**LORA, "weights_path": str(start_weights(place / "start").absolute())}
    expected = fingerprint(train_quickly(**changes))
    said = re.search(r"merged    largest logit difference (\S+)", capsys.readouterr().out)[1]
    assert float(said) < 1e-5
    model = checkpoint.load_model("final_trained_model.pt")
    again = from_safetensors(changes["weights_path"]).build_model(model.seq_len)
    adapter_files.merge(again, adapter_files.load("adapter"))
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()))
    exec(SNIPPET, {})
    for name in ("stopped", "elsewhere"):
        prepare(place / name)
        stop_before(monkeypatch, 7, **changes)
        if name == "stopped":
            assert fingerprint(train_quickly(resume=True, **changes)) == expected
    shutil.rmtree(changes["weights_path"])
    start_weights(Path(changes["weights_path"]), seed=8)
    with pytest.raises(CheckpointError, match=r"stand beside other weights .* has changed since"):
        train_quickly(resume=True, **changes)


def test_checkpoints_have_what_learns_alone_and_their_reader_says_so(place):
    train_quickly(**LORA)
    for path in (*step_files(), Path("best_model.pt")):
        state = checkpoint.load(path)
        assert all(".lora_" in name for name in state["model_state_dict"])
        with pytest.raises(CheckpointError, match=f"adapters alone, not the model .*{path.name}"):
            checkpoint.load_model(path)
    state = checkpoint.load(step_files()[-1])
    learns = [*state["model_state_dict"].values()]
    moments = [m for s in state["optimizer_state_dict"].values() for m in s.values() if m.dim()]
    assert sum(m.numel() for m in moments) == 2 * sum(w.numel() for w in learns)
    told = Learning.of(state["config"], 50257)
    assert told.num_weights == sum(weight.numel() for weight in learns)
    assert told.moment_bytes == sum(moment.nbytes for moment in moments)
    assert (
        "blocks.0.attention.qkv.weight"
        in checkpoint.load("final_trained_model.pt")["model_state_dict"]
    )


def test_frozen_weights_end_as_they_began_and_cost_no_moments(place):
    path = train_quickly(**WHOLE, keep_checkpoints=9, seed=3)
    first, last = (checkpoint.load(path)["model_state_dict"] for path in (step_files()[0], path))
    frozen = {n for n in last if "input_embedding" in n or ".attention." in n}
    assert {name for name in last if torch.equal(first[name], last[name])} == frozen
    table = last[checkpoint.EMBEDDING]
    assert len(table.unique(dim=0)) == len(table)  # no two tokens share a row of it
    state = checkpoint.load(step_files()[-1])
    told = Learning.of(state["config"], 50257)
    assert told.num_weights == sum(weight.numel() for n, weight in last.items() if n not in frozen)
    assert told.num_weights < num_parameters(state["config"], 50257)


def test_an_earlier_runs_adapter_is_set_aside_and_a_foreign_folder_stays(place, capsys):
    train_quickly(**LORA, max_steps=3)
    assert re.search(r"\n {10}adapter +what was learned alone", capsys.readouterr().out)
    first = load_file("adapter/adapter_model.safetensors")
    train_quickly(**LORA, max_steps=3, seed=1)
    (aside,) = Path("earlier_runs").iterdir()
    assert canonical(load_file(aside / "adapter" / "adapter_model.safetensors")) == canonical(first)
    shutil.rmtree("adapter")
    Path("adapter").mkdir()
    Path("adapter/mine.txt").write_text("keep")
    capsys.readouterr()
    train_quickly(**LORA, max_steps=3, seed=2)
    assert "there is another folder of that name (adapter)" in capsys.readouterr().err
    assert [path.name for path in Path("adapter").iterdir()] == ["mine.txt"]


def test_the_adapter_knows_its_run_and_its_base(place):
    state = checkpoint.load(train_quickly(**LORA, max_steps=3))
    assert "base_id" not in state
    metadata = run_folder.adapter_metadata(Path("adapter"))
    assert metadata["run_id"] == state["run_id"]
    assert metadata["base_id"] == base_id(checkpoint.model_from(state))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_layers": "c_attn"}, "lora_layers='c_attn' names nothing"),
        ({"lora_layers": "*"}, "names the table of tokens"),
        ({"freeze": "blok"}, "freeze='blok' names nothing"),
        ({"freeze": "*"}, "leaves nothing that learns"),
    ],
)
def test_patterns_are_checked_before_any_work(place, changes, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        train_quickly(**{**LORA, **changes})
    assert not Path(".tokens").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_rank": 3}, "another architecture .*lora_rank 2 -> 3"),
        ({"adapter": ""}, "another architecture .*adapter 'lora' -> ''"),
        ({"lora_layers": "qkv"}, "another architecture .*lora_layers"),
    ],
)
def test_a_resume_keeps_the_adapters_as_they_are(place, changes, said):
    train_quickly(**LORA, max_steps=3)
    with pytest.raises(CheckpointError, match=said):
        train_quickly({"resume": True, **changes})


def test_freezing_else_wants_another_text(place):
    train_quickly(max_steps=4)
    with pytest.raises(ConfigError, match=r"the run could not go on as it was .*freeze"):
        train_quickly({"resume": True, "freeze": "blocks.0", "max_steps": 6})
