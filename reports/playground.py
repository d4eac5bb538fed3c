"""The page of the playground: texts come token by token, each with how likely it was."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path
from socket import create_server
from typing import Any

from generation.options import DRAW, OPTIONS, SEARCH, settings_of, text_of
from generation.scoring import log_probabilities
from generation.settings import RULES, setting_of
from reports.gate import HEADERS, HOME, guarded
from reports.html import text
from reports.shelf import Shelf
from reports.token_view import colored
from system.errors import ConfigError, SamplingError
from system.process import describe, exit_code_of, log
from tokenizer import END_OF_TEXT_ID

LOOK_PATH = Path(__file__).parent.parent / "assets" / "playground.css"
SHOWN = [name for name in OPTIONS if name in RULES or name == "stop"]  # settings with a control
NO_OTHER = "none"  # beside the first model
MOST_CHARS = 20_000  # of a prompt or a text
MOST_WAITING = 64  # clients at once, in one line
SECONDS = 0.1  # from one look at what is written to the next
ON_CLICK = """
const show = event => {
  const token = event.target.closest("[title]")
  if (!token || event.type == "keydown" && event.key != "Enter") return
  token.closest("article").querySelector("output").textContent = token.title
}
element.addEventListener("click", show)
element.addEventListener("keydown", show)
"""


def write(shelf: Shelf, prompt: str, names: Sequence[str], values: dict[str, Any]) -> Iterator[str]:
    """What each model makes of the prompt, as it grows; at the end with colours."""
    settings = settings_of(values, SEARCH if values["num_beams"] > 1 else DRAW)
    titles, writers = zip(*map(shelf.writer, names), strict=True)
    rows = [writer.rows([prompt], settings) for writer in writers]
    streams = [writer.steps(some, settings) for writer, some in zip(writers, rows, strict=True)]
    note, start, shown = f"{settings}, seed {settings.seed}", time.monotonic(), 0.0
    for _ in zip_longest(*streams):
        if time.monotonic() - shown > SECONDS:
            texts = [
                "".join(f"<pre>{text(row.prompt + row.text)}</pre>" for row in some)
                for some in rows
            ]
            yield columns(titles, texts, note)
            shown = time.monotonic()
    num_tokens = sum(len(row.ids) for some in rows for row in some)
    note += f", {num_tokens} tokens, {num_tokens / (time.monotonic() - start):,.1f} tokens/s"
    texts = [
        "".join(colored(writer, row.prompt_ids + row.ids) for row in some)
        for writer, some in zip(writers, rows, strict=True)
    ]
    yield columns(titles, texts, note)


def score(shelf: Shelf, said: str, names: Sequence[str], values: dict[str, Any]) -> Iterator[str]:
    """How likely each model finds the text: on average, and token by token."""
    titles, writers = zip(*map(shelf.writer, names), strict=True)
    ids = [END_OF_TEXT_ID, *writers[0].tokenizer.encode(said)]
    if len(ids) == 1:
        raise SamplingError("nothing to score: paste a text")
    texts = []
    for writer in writers:
        nats = -log_probabilities(writer.model, ids)
        loss, bits = nats.mean().item(), nats.sum().item() / math.log(2) / len(said.encode())
        numbers = f"{len(nats):,} tokens, loss {loss:.3f}, perplexity {math.exp(loss):,.1f}"
        texts.append(f"<p>{numbers}, {bits:.3f} bits a byte</p>{colored(writer, ids, first=1)}")
    yield columns(titles, texts, "")


def columns(titles: Sequence[str], texts: Sequence[str], note: str) -> str:
    """HTML: a line, and below it a column for each model."""
    pairs = zip(titles, texts, strict=True)
    articles = [f"<article><h2>{text(title)}</h2>{body}</article>" for title, body in pairs]
    return f'<p role="status">{text(note)}</p><div class="columns">{"".join(articles)}</div>'


def answer(
    work: Callable[..., Iterator[str]], said: str, first: str, second: str, *shown: Any
) -> Iterator[str]:
    """What the work makes of a text with one or two models; a foreseeable error is a line."""
    try:
        if len(said) > MOST_CHARS:
            raise SamplingError(f"too long ({len(said):,} characters): at most {MOST_CHARS:,}")
        names = [first] if second == NO_OTHER else [first, second]
        values = {name: value_of(name, value) for name, value in zip(SHOWN, shown, strict=False)}
        yield from work(text_of(said, "the page"), names, values)
    except Exception as error:
        if exit_code_of(error) is None:
            raise
        yield columns([], [], f"error: {describe(error)}")


def value_of(name: str, shown: Any) -> Any:
    """What a control shows, as a setting: nothing is the default, and so is a 0 that it forbids."""
    if name == "stop":
        return [shown] if shown else []
    is_off = shown in (None, "") or (shown == 0 and not RULES[name].is_right(0))
    return OPTIONS[name].default if is_off else setting_of(name, shown)


def control(name: str) -> Any:
    """What sets this setting: a slider as its rule has it, where it is no seed and no text."""
    import gradio

    option, rule = OPTIONS[name], RULES.get(name)
    form = {
        "label": name.replace("_", " "),
        "info": option.remark.removesuffix("; repeatable"),
        "min_width": 280,
    }
    if name in ("seed", "stop"):
        return gradio.Textbox(max_length=100, **form)
    step = 1 if rule.kind is int else 0.05
    least = 0 if option.default is None or rule.is_right(0) else step
    most = option.most if rule.kind is int else 2 if rule.is_right(2) else 1
    form["info"] += "; 0: off" * (option.default is None)
    return gradio.Slider(least, most, option.default or least, step=step, **form)


def page(shelf: Shelf) -> Any:
    """The page, a `gradio.Blocks`."""
    import gradio

    private, names = {"api_visibility": "private"}, shelf.names()
    plain = {"html_attributes": gradio.InputHTMLAttributes(spellcheck=False)}  # no one else reads
    queued = {"concurrency_id": "model", "concurrency_limit": 1, **private}
    with gradio.Blocks(title="GPT playground", analytics_enabled=False) as blocks:
        gradio.Markdown("# GPT playground")
        with gradio.Row():
            first, second = (
                gradio.Dropdown([*none, *names], label=label, filterable=False)
                for label, none in {"model": [], "beside it": [NO_OTHER]}.items()
            )
        with gradio.Tab("Write"):
            prompt = gradio.Textbox("Once upon a time", label="prompt", lines=3, **plain)
            with gradio.Row():
                start, stop = gradio.Button("Write", variant="primary"), gradio.Button("Stop")
            with gradio.Accordion("Settings", open=False), gradio.Row():
                given = [prompt, first, second, *map(control, SHOWN)]
            story = gradio.HTML(js_on_load=ON_CLICK)
        with gradio.Tab("Score"):
            said = gradio.Textbox(label="text", lines=8, **plain)
            measure = gradio.Button("Score", variant="primary")
            found = gradio.HTML(js_on_load=ON_CLICK)
        writing = start.click(partial(answer, partial(write, shelf)), given, story, **queued)
        stop.click(None, cancels=[writing], **private)
        asked = [said, first, second]
        measure.click(partial(answer, partial(score, shelf)), asked, found, **queued)
        for box, none in ((first, []), (second, [NO_OTHER])):  # opened, they know what is new
            look = partial(lambda none: gradio.update(choices=[*none, *shelf.names()]), none)
            box.focus(look, None, box, show_progress="hidden", **private)
    return blocks


def server_of(shelf: Shelf, port: int = 0) -> tuple[Any, Any]:
    """A server of the page, and the socket at this machine's own address that it is to run on."""
    try:
        import fastapi
        import gradio
        import uvicorn
    except ImportError as error:
        raise ConfigError("the playground needs Gradio: pip install gradio") from error
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"no such port (port={port}): choose one below {1 << 16}")
    try:
        socket = create_server((HOME, port))
    except OSError as error:  # taken, or not allowed
        reason = f"port={port}: {error.strerror}"
        raise ConfigError(f"cannot serve there ({reason}): choose another one") from error
    blocks = page(shelf)
    blocks.queue(max_size=MOST_WAITING)
    theme = gradio.themes.Default(primary_hue="blue", font="system-ui", font_mono="monospace")
    theme.set(
        body_text_color_subdued="*neutral_600",  # as easy to read as axe wants it
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )
    look = {"theme": theme, "css_paths": LOOK_PATH, "footer_links": []}
    off = dict.fromkeys(("show_error", "run_history", "ssr_mode", "mcp_server", "pwa"), False)
    app = gradio.mount_gradio_app(fastapi.FastAPI(), blocks, "/", **look, **off)
    form = {"headers": [*HEADERS.items()], "ws": "none", "log_level": "error"}
    app = guarded(app, socket.getsockname()[1])
    return uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **form)), socket


def serve(shelf: Shelf, port: int) -> None:
    """Serves the page until Ctrl-C, which ends it in the ordinary way."""
    server, socket = server_of(shelf, port)
    log(f"open      http://{HOME}:{socket.getsockname()[1]}/ until Ctrl-C")
    with closing(socket), suppress(KeyboardInterrupt):
        server.run(sockets=[socket])
