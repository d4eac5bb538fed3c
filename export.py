"""The final model for other programs: a Hugging Face folder, or a GGUF file for llama.cpp.

python export.py --to hf DIR
python export.py --to gguf FILE --type q8_0
python export.py --to gguf-adapter FILE --adapter adapter

What is written is read back and compared with the model: the receipt. Nothing is overwritten.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from system.command_line import Parser
from system.errors import ExportError
from system.files import as_path, check_writable, sweep_parts
from system.process import StopSignals, run_command
from tokenizer import END_OF_TEXT_ID

PACKAGES = {"hf": "safetensors", "gguf": "gguf", "gguf-adapter": "gguf"}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="export.py", description="Writes a trained model for other programs.")
    add = parser.add_argument
    add("--to", choices=PACKAGES, required=True, help="what to write")
    add("path", type=as_path, help="the folder or the file to write")
    add("--checkpoint", type=as_path, help="model file or run's folder (final_trained_model.pt)")
    add(
        "--adapter",
        action="append",
        default=[],
        help="what was tuned, as DIR or DIR=WEIGHT; repeatable",
    )
    add("--type", choices=("f32", "f16", "q8_0"), help="how GGUF holds the matrices (f16)")
    options = parser.parse_args(arguments)
    if options.to != "gguf" and options.type:
        parser.error("--type is for --to gguf")
    if options.to == "gguf-adapter" and (len(options.adapter) != 1 or options.checkpoint):
        parser.error("--to gguf-adapter is for one --adapter DIR, and no --checkpoint")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    package, path = PACKAGES[options.to], options.path.resolve()
    if find_spec(package) is None:
        raise ExportError(f"a package is missing ({package}): pip install {package}")
    is_empty_folder = options.to == "hf" and path.is_dir() and not any(path.iterdir())
    if path.exists() and not is_empty_folder:
        raise ExportError(f"there is something already ({path}): remove it, or choose another name")
    check_writable(path.parent)
    sweep_parts(path.parent)
    with StopSignals():
        if options.to == "gguf-adapter":
            from exchange import adapter_files, gguf_file

            receipt = gguf_file.export_gguf_adapter(path, adapter_files.load(options.adapter[0]))
        else:
            receipt = written_model(options, path)
    print(f"saved     {path}\nreceipt   {receipt}")


def written_model(options: argparse.Namespace, path: Path) -> str:
    """The receipt of the model in the checkpoint, adapters merged, and which context it has."""
    # torch takes a second to import, which --help spares
    from exchange import adapter_files, gguf_file, huggingface
    from storage import checkpoint

    source = options.checkpoint or Path(checkpoint.FINAL_NAME)
    state = checkpoint.load(source)
    model = checkpoint.model_from(state, source).float()
    num_tokens = model.input_embedding.embedding.num_embeddings
    if num_tokens != END_OF_TEXT_ID + 1:
        raise ExportError(f"not GPT-2's vocabulary ({num_tokens:,} tokens): cannot export")
    adapter_files.merge_all(model, options.adapter, run_id=state.get("run_id", ""))
    if options.to == "hf":
        receipt = huggingface.export_huggingface(path, state, model)
    else:
        receipt = gguf_file.export_gguf(path, state["config"], model, options.type or "f16")
    return f"{receipt}\ncontext   give no program more than {model.seq_len} tokens"


if __name__ == "__main__":
    run_command(main)
