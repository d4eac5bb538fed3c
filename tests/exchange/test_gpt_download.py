"""The folder of official files (FAULTS.md, E7 to E10, D4, D6) and reading what is in it."""

import math
import shutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from gpt2_server import FileServer
from official_checkpoint import variable_shapes, write_official, write_variables
from random_models import SETTINGS

import gpt_download
from gpt_download import DATA, INDEX, OfficialModel, download_gpt2
from system import fetch
from system.errors import DownloadError, WeightsError
from system.fetch import RemoteFile

Official = tuple[Path, dict[str, np.ndarray]]  # a folder with a model's files, and its variables


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Official:
    """A folder with all the files of a tiny model, and its variables."""
    folder = tmp_path_factory.mktemp("official")
    return folder, write_official(folder, SETTINGS)


def known(folder: Path, has_hashes: bool = True) -> OfficialModel:
    """The table's row for the files of a folder."""
    files = {}
    for name in gpt_download.FILE_NAMES:
        content = (folder / name).read_bytes()
        files[name] = RemoteFile(len(content), sha256(content).hexdigest() if has_hashes else None)
    return OfficialModel(SETTINGS, files)


@pytest.fixture
def server(official: Official, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """The only source, with the tiny model in the place of the 124M one."""
    monkeypatch.setattr(gpt_download, "MODELS", {"124M": known(official[0])})
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", 0.001)
    monkeypatch.delenv("GPT2_MIRROR", raising=False)
    with FileServer() as server:
        server.files = served(official[0])
        monkeypatch.setattr(gpt_download, "BASE_URL", server.url)
        yield server


def served(folder: Path) -> dict[str, bytes]:
    return {
        f"/models/124M/{name}": (folder / name).read_bytes() for name in gpt_download.FILE_NAMES
    }


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_every_file_of_a_model_is_fetched_once(server, official, tmp_path):
    folder = download_gpt2("124M", tmp_path)
    assert folder == tmp_path / "124M"
    assert served(folder) == served(official[0])
    assert len(server.requests) == 7


def test_files_copied_by_hand_need_no_network(official, server, tmp_path):
    shutil.copytree(official[0], tmp_path / "124M")
    settings, params = gpt_download.download_and_load_gpt2("124M", tmp_path)
    assert settings == SETTINGS
    np.testing.assert_array_equal(params["wte"], official[1]["model/wte"])
    assert server.requests == []
    assert not (tmp_path / "124M" / ".lock").exists()  # nothing is written either


def test_without_network_the_error_says_what_to_put_where(official, server, monkeypatch, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url, mirror = (f"http://127.0.0.1:{closed.getsockname()[1]}/{i}" for i in (1, 2))
    monkeypatch.setattr(gpt_download, "BASE_URL", url)
    monkeypatch.setenv("GPT2_MIRROR", mirror)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    with pytest.raises(DownloadError) as caught:
        gpt_download.download_and_load_gpt2("124M", tmp_path)
    assert "tensorflow" not in sys.modules  # nor what it prints
    wanted = [f"{url}/124M/", f"{mirror}/124M/", str(tmp_path / "124M"), *gpt_download.FILE_NAMES]
    assert all(text in str(caught.value) for text in wanted)
    assert "\n" not in str(caught.value)


def test_only_the_file_that_rotted_is_fetched_again(server, tmp_path):
    folder = download_gpt2("124M", tmp_path)
    for name in (DATA, "vocab.bpe"):
        server.requests.clear()
        flip_a_byte(folder / name)
        download_gpt2("124M", tmp_path)
        assert [path for path, _ in server.requests] == [f"/models/124M/{name}"]


@pytest.mark.parametrize("name", [DATA, INDEX])
def test_what_only_tensorflow_can_find_rotten_is_fetched_again(
    server, official, monkeypatch, capsys, tmp_path, name
):
    monkeypatch.setitem(gpt_download.MODELS, "124M", known(official[0], has_hashes=False))
    flip_a_byte(download_gpt2("124M", tmp_path) / name)
    path = f"/models/124M/{name}"
    with FileServer() as mirror:  # asked first, for the other source may be where it rotted
        mirror.files = dict(server.files)
        server.files[path] = bytes(len(server.files[path]))
        monkeypatch.setenv("GPT2_MIRROR", mirror.url)
        _, params = gpt_download.download_and_load_gpt2("124M", tmp_path)
    assert "warning: fetching 124M again: " in capsys.readouterr().err
    np.testing.assert_array_equal(params["wte"], official[1]["model/wte"])


def test_of_two_at_once_one_fetches_and_the_other_waits(server, official, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(download_gpt2, ["124M"] * 2, [tmp_path] * 2))
    assert len(server.requests) == 7
    assert [served(folder) for folder in folders] == [served(official[0])] * 2


@pytest.mark.parametrize("size", ["../124M", "124M/..", "", "117M", "/tmp", "gpt2-small (124M)"])
def test_only_the_four_sizes_are_names(server, tmp_path, size):
    with pytest.raises(ValueError, match="no such GPT-2 model"):
        gpt_download.download_and_load_gpt2(size, tmp_path / "models")
    assert list(tmp_path.iterdir()) == []
    assert server.requests == []


def test_the_files_checkpoint_and_hparams_lead_nowhere(server, official, monkeypatch, tmp_path):
    folder = tmp_path / "124M"
    shutil.copytree(official[0], folder)
    write_official(tmp_path / "elsewhere", {**SETTINGS, "n_layer": 3})
    lure = f'model_checkpoint_path: "{tmp_path}/elsewhere/model.ckpt"\n'
    (folder / "checkpoint").write_text(lure)
    (folder / "hparams.json").write_text('{"n_layer": 1000000000}')
    monkeypatch.setitem(gpt_download.MODELS, "124M", known(folder))
    settings, params = gpt_download.download_and_load_gpt2("124M", tmp_path)
    assert settings == SETTINGS
    assert len(params["blocks"]) == 2
    with pytest.raises(WeightsError, match="a folder"):
        gpt_download.load_gpt2_params_from_tf_ckpt(folder, SETTINGS)
    with pytest.raises(DownloadError, match=f"not a whole .*{tmp_path}/model.ckpt"):
        gpt_download.load_gpt2_params_from_tf_ckpt(tmp_path / "model.ckpt", SETTINGS)


def test_the_table_agrees_with_itself():
    for model in gpt_download.MODELS.values():
        shapes = variable_shapes(model.settings).values()
        assert model.files[DATA].size == 4 * sum(math.prod(shape) for shape in shapes)


def test_what_tensorflow_wrote_is_read_bit_for_bit(official, capfd):
    folder, arrays = official
    params = gpt_download.load_gpt2_params_from_tf_ckpt(folder / "model.ckpt", SETTINGS)
    assert params.keys() == {"wte", "wpe", "g", "b", "blocks"}
    c_attn = params["blocks"][1]["attn"]["c_attn"]["w"]
    np.testing.assert_array_equal(c_attn, arrays["model/h1/attn/c_attn/w"][0])
    np.testing.assert_array_equal(params["g"], arrays["model/ln_f/g"])
    assert capfd.readouterr() == ("", "")


def test_variables_that_do_not_belong_are_all_listed(official, tmp_path):
    arrays = dict(official[1])
    arrays["model/extra"] = arrays.pop("model/wpe")
    write_variables(tmp_path, arrays)
    with pytest.raises(WeightsError, match=r"missing model/wpe; unknown model/extra\)"):
        gpt_download.load_gpt2_params_from_tf_ckpt(tmp_path / "model.ckpt", SETTINGS)


def test_without_tensorflow_nothing_is_fetched_and_the_ways_out_are_told(
    server, monkeypatch, tmp_path
):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no such symbol')")
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    ways = r"\): pip install .* Python below 3.14, or .* folder with --weights_path"
    with pytest.raises(DownloadError, match=f"no such symbol{ways}"):
        gpt_download.load_gpt2_params_from_tf_ckpt(tmp_path / "model.ckpt", SETTINGS)
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    with pytest.raises(DownloadError, match=ways):
        gpt_download.download_and_load_gpt2("124M", tmp_path / "models")
    assert server.requests == []


def test_tensors_are_read_from_the_file_when_they_are_sliced(server, official, tmp_path):
    tensors = gpt_download.official_tensors("124M", tmp_path)
    for name, matrix in (
        ("blocks.1.mlp.c_fc.w", official[1]["model/h1/mlp/c_fc/w"][0]),
        ("wpe", official[1]["model/wpe"]),
        ("b", official[1]["model/ln_f/b"]),
    ):
        stored = tensors[name]
        assert stored.shape == matrix.shape
        for rows in (slice(None), slice(1, 3), slice(len(matrix) - 1, 99), slice(5, 5)):
            np.testing.assert_array_equal(stored[rows], matrix[rows])
