"""What `python data.py` does: gets a corpus by its name."""

import sys

from corpus.known import get, known_corpora
from system.command_line import Parser


def main() -> None:
    parser = Parser(prog="data.py", description="Looks after the text to train on.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    names = ", ".join(known_corpora())
    getting = commands.add_parser("get", help="fetch a corpus to where train.py finds it")
    getting.add_argument("names", nargs="+", metavar="NAME", help=f"any of {names}")
    getting.set_defaults(run=lambda options: get(options.names))
    options = parser.parse_args(sys.argv[1:])
    options.run(options)
