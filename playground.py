"""A page to try models in, for this machine alone: `python playground.py`."""

from collections.abc import Sequence
from pathlib import Path

from generation.options import OFFICIAL_NAMES, PRECISIONS
from system.command_line import Parser
from system.files import as_path
from system.process import run_command


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="playground.py",
        description="Serves a page that writes with models and shows how likely they find a text.",
    )
    path = {"metavar": "PATH", "type": as_path, "action": "append", "default": []}
    official = {"choices": OFFICIAL_NAMES, "action": "append", "default": []}
    form = {"choices": PRECISIONS, "default": "auto"}
    parser.add_argument("--checkpoint", help="a run's folder or a model file; repeatable", **path)
    parser.add_argument("--model", help="OpenAI's weights, fetched when chosen", **official)
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N")
    parser.add_argument("--precision", help="type of the weights (auto)", **form)
    parser.add_argument("--port", type=int, default=0, help="where it is served; 0: any free one")
    options = parser.parse_args(arguments)

    from exchange.pretrained import official as weights_of
    from reports import playground, shelf  # bring torch, which --help need not wait for
    from system import machine

    machine.yield_to_others()
    device, _ = machine.choose_device(options.device)
    models = shelf.Shelf(
        options.checkpoint or ([] if options.model else [Path()]),
        {name: weights_of(name).build_model for name in options.model},
        precision=options.precision,
        device=device,
    )
    playground.serve(models, options.port)


if __name__ == "__main__":
    run_command(main)
