"""Text from a trained model: `TextGenerator`, and the command.

python generate.py --prompt "Once upon a time"
"""

from collections.abc import Sequence
from typing import Any

from generation.options import COMPARE, TALK, parse_arguments, prompts_of
from system import process

ROWS_AT_ONCE = 32  # of many prompts or samples, so that their caches fit in memory


def __getattr__(name: str) -> Any:
    """`from generate import TextGenerator`; torch takes a second to import, which --help spares."""
    if name != "TextGenerator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from generation.generator import TextGenerator

    return TextGenerator


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    prompts = prompts_of(options)

    from generation import console
    from generation.fast_weights import prepared
    from generation.generator import TextGenerator
    from storage import checkpoint
    from system import machine
    from tokenizer import GPT2Tokenizer

    device, _ = machine.choose_device(options.device)
    if options.model:
        from exchange.pretrained import official  # requests takes its time to import

        state, model = {}, official(options.model).build_model()
    else:
        state = checkpoint.load(options.checkpoint)
        model = checkpoint.model_from(state, options.checkpoint)
    if options.adapter:
        from exchange.adapter_files import merge_all

        merge_all(model, options.adapter, run_id=state.get("run_id", ""))
    generator = TextGenerator(prepared(model, options.precision, device), GPT2Tokenizer())
    if options.mode == TALK:
        console.converse(generator, options.settings)
    elif options.mode == COMPARE:
        console.compare(generator, prompts, options, state)
    else:
        console.notice_long(generator, prompts)
        rows = generator.rows(prompts, options.settings)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            steps = generator.steps(part, options.settings)
            if start and not options.json:
                print(console.BETWEEN)
            console.show(part, steps, options.settings, as_json=options.json)


if __name__ == "__main__":
    process.run_command(main)
