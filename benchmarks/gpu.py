"""All that is to be known of a GPU, in one command of bounded time."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch

from benchmarks import record
from system.errors import ConfigError
from system.files import write_durably
from system.machine import choose_device
from system.process import log

ROOT = Path(__file__).parent.parent
LAST_LINES = 12
GRACE_SECONDS = 30  # to end by itself; afterwards a part is killed
# What is run and for how many seconds at most; all of it together within 12 minutes.
TESTS = {"Tests that need a GPU": ("-m pytest -q -n 0 -m gpu", 90)}
PARTS = {
    "A training step of GPT-2 small": (
        "train --shape gpt2-train --compiled --only ^ours,[^,]*$|bfloat16|products",
        210,
    ),
    "The loss, its chunks, its rows": ("head --shape gpt2-train --precision bfloat16", 80),
    "Writing": ("generate --only float16|bfloat16|f16", 90),
    "The same losses in every type": ("agreement --dropout 0", 60),
}


def measure_gpu(options: dict[str, Any], path: Path) -> None:
    """Every part that a GPU owes, each in its time, as JSON and as Markdown beside it."""
    device = choose_device(options.get("device", "auto"))[0]
    if device.type == "cpu" and "device" not in options:
        raise ConfigError("no GPU here: to try it with small sizes, give them and --device cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    given = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    results: dict[str, Any] = {}
    for title, (arguments, seconds) in {**TESTS, **PARTS}.items():
        log(f"{title}: at most {seconds} seconds")
        command = arguments.split()
        if title in PARTS:
            command = [str(ROOT / "bench.py"), *command, f"--max-seconds={seconds}", *given]
        results[title] = run_part(command, seconds)
        record.save(path, {"device": name, "torch": torch.__version__, "parts": results})
        text = as_markdown(name, results)
        write_durably(path.with_suffix(".md"), lambda file, text=text: file.write(text.encode()))
    print(as_markdown(name, results))
    log(f"written   {path} and {path.with_suffix('.md')}")


def run_part(arguments: list[str], seconds: float) -> dict[str, Any]:
    """What a command printed and measured, and how it ended; it cannot stop the next one."""
    start = time.monotonic()
    with TemporaryDirectory() as folder:
        rows_path, output_path = Path(folder) / "rows.json", Path(folder) / "output"
        is_bench = arguments[0] != "-m"
        command = [sys.executable, *arguments, *([f"--json={rows_path}"] if is_bench else [])]
        with output_path.open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            try:
                process.wait(seconds + GRACE_SECONDS * is_bench)
                ending = f"exit {process.returncode}"
            except subprocess.TimeoutExpired:
                ending = "killed: it took too long"
            finally:
                end(process)
        measured = json.loads(rows_path.read_text()) if rows_path.exists() else {}
        text = output_path.read_text(encoding="utf-8", errors="replace")
    return {
        "command": " ".join(arguments[not is_bench :]).replace(f"{ROOT}/", ""),
        "ending": ending,
        "seconds": time.monotonic() - start,
        "output": text,
        **measured,
    }


def end(process: subprocess.Popen) -> None:
    """Kills the process, if it still runs, and those that it has started."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def as_markdown(name: str, results: dict[str, Any]) -> str:
    """A section for each part: its table, or the end of what it printed."""
    lines = [f"# {name}, torch {torch.__version__}"]
    for title, result in results.items():
        how = f"`{result['command']}`, {result['seconds']:.0f} s, {result['ending']}"
        printed = result["output"].strip().splitlines()
        lines += [f"## {title}", how, *(line for line in printed if line.startswith("left out"))]
        last = "\n".join(printed[-LAST_LINES:])
        lines.append(record.table(result["rows"]) if result.get("rows") else f"```\n{last}\n```")
    return "\n\n".join(lines) + "\n"
