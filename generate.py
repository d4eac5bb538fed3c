"""Text from a trained model: `TextGenerator`, and the command.

python generate.py --prompt "Once upon a time"
"""

import sys
from collections.abc import Sequence

from generation import console
from generation.fast_weights import prepared
from generation.generator import TextGenerator
from model import Transformer
from storage import checkpoint
from system import machine, process
from tokenizer import GPT2Tokenizer


def official_model(name: str) -> Transformer:
    """OpenAI's own GPT-2, downloaded on first use: official_model("gpt2-small")."""
    from exchange.pretrained import official  # requests takes its time to import

    return official(name).build_model().eval()


def main(arguments: Sequence[str] | None = None) -> None:
    options = console.parse_arguments(sys.argv[1:] if arguments is None else arguments)
    options.seed = console.settings_of(options).seed
    prompts = console.prompts_of(options)
    if options.model:
        state, model = {}, official_model(options.model)
    else:
        state = checkpoint.load(options.checkpoint)
        model = checkpoint.model_from(state)
    device, _ = machine.choose_device(options.device)
    model = prepared(model.to(device), options.precision)
    generator = TextGenerator(model, GPT2Tokenizer())
    if options.interactive:
        console.converse(generator, options)
    elif options.compare:
        console.compare(generator, prompts, options, state)
    else:
        console.write(generator, prompts, options)


if __name__ == "__main__":
    process.run_command(main)
