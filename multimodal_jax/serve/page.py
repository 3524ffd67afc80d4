"""The page: tabs as forms of gradio, and the server. The only module that imports gradio."""

import html
import logging
import os
import shlex
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from multimodal_jax.serve import jobs
from multimodal_jax.serve.models import Models
from multimodal_jax.serve.runs import KINDS, Runs
from multimodal_jax.serve.tab import MAX_BYTES, MAX_CHARACTERS, Choice, Field, Number, Picture, Tab
from multimodal_jax.serve.tabs import TABS
from train_jax.data.errors import USER_ERRORS
from train_jax.errors import UserError

log = logging.getLogger(__name__)

_TITLE = "Multimodal JAX"
_USERS = 32  # requests of shared tabs at a time, of gradio's 40 threads; others wait in gradio's queue
_KEEP_FILES = 3600  # seconds for which the pictures of a result can be downloaded
_STOPPING = 60  # seconds to wait for the end of a stopped job, which sees the stop when it shows something
# Fonts of the system, so that no other machine is asked for one. Text is as dark as WCAG's 4.5 : 1 needs it.
_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
_STYLE = """
.gallery img { image-rendering: pixelated; object-fit: contain; width: 100%; height: 100% }
.gallery .thumbnail-item { max-width: 20rem }
.gallery .grid-container { grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) }
.gallery .caption-label { max-width: 100%; white-space: normal }
.status p { margin: .2rem 0 } .status .error { color: #b91c1c; font-weight: 600 } .dark .status .error { color: #fca5a5 }
[role=tab][aria-selected=true] { color: var(--primary-700) !important }
.dark [role=tab][aria-selected=true] { color: var(--primary-300) !important }
.missing { border-left: 4px solid #b45309; padding-left: 1rem }
.missing pre { white-space: pre-wrap; overflow-wrap: anywhere }
"""


def serve(models: Models, host: str, port: int) -> None:
    """Serves the page until it is interrupted.

    Raises UserError if gradio is missing, a named model cannot be loaded, or the port is not free.
    """
    with tempfile.TemporaryDirectory(prefix="multimodal-jax-") as folder:
        # Where gradio keeps uploads and results. It reads this when it is imported.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise UserError(f"the page needs gradio ({error}): pip install 'multimodal-jax[app]'") from error
        for sentence in models.runs.damaged:
            print(f"multimodal-jax serve: left out: {sentence}")
        for kind, paths in models.runs.paths.items():
            for path in paths:
                if isinstance(path, str):  # no run of the folder: it may have to be downloaded, which the page does not
                    models.open(kind, path)
        # Such pictures are refused; Pillow's warning, which gradio would print beside them, says the same.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            launch(models, host, port)
        except OSError as error:
            raise UserError(f"--port {port}: {error}; choose another port") from error
        print(f"http://{host}:{port} is open until Ctrl-C: {', '.join(tab.title for tab in TABS)}", flush=True)
        threading.Event().wait()


def launch(models: Models, host: str, port: int):
    """Starts the server in a thread. Returns the page, a `gradio.Blocks`, whose `close` ends it."""
    import gradio as gr

    theme = gr.themes.Default(primary_hue="blue", **_FONTS).set(
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700", block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700", block_title_text_color_dark="*neutral_200",
        button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
    )  # fmt: skip
    page = build(models)
    page.queue().launch(
        server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, ssr_mode=False,
        max_file_size=MAX_BYTES, footer_links=[], theme=theme, css=_STYLE, enable_monitoring=False,
    )  # fmt: skip
    return page


def build(models: Models):
    """Builds the page, a `gradio.Blocks`."""
    import gradio as gr

    with gr.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=(_KEEP_FILES, _KEEP_FILES)) as page:
        gr.Markdown(f"# {_TITLE}\nModels of `{models.runs.folder}`")
        with gr.Tabs():
            for tab in TABS:
                missing = models.runs.missing(tab.needs)
                with gr.Tab(f"{tab.title} (missing)" if missing else tab.title):
                    _add_tab(tab, models, missing)
    return page


def _add_tab(tab: Tab, models: Models, missing: Sequence[str]) -> None:
    import gradio as gr

    gr.Markdown(tab.text)
    if missing:
        gr.HTML(describe_missing(models.runs, missing))
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            names = [name for name in tab.fields if name not in tab.advanced]
            components = {name: _make_input(tab.form[name], models.runs, missing) for name in names}
            with gr.Row():
                start = gr.Button(tab.button, variant="primary", interactive=not missing)
                stop = gr.Button("Stop", interactive=not missing)
            with gr.Accordion("Options", open=False):
                for name in (*tab.advanced, *tab.needs):
                    components[name] = _make_input(tab.form[name], models.runs, missing)
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(elem_classes="status")
            shares = gr.Label(label="Probabilities", visible=tab.has_shares, show_label=True)
            pictures = gr.Gallery(
                label="Pictures", show_label=False, columns=4, height="auto", object_fit="contain", format="png",
                interactive=False, elem_classes="gallery", visible=not tab.has_shares, buttons=["download", "fullscreen"],
            )  # fmt: skip
            words = gr.Textbox(
                label="The same on the command line", interactive=False, max_lines=6, buttons=["copy"],
                elem_classes="command",
            )  # fmt: skip
    outputs, names = [status, shares, pictures, words], list(components)
    running: dict[str, threading.Event] = {}  # browser -> what its job sets at its end

    def run(request: gr.Request, *values: Any) -> Iterator[tuple]:
        ended = running[request.session_hash] = threading.Event()
        try:
            yield from run_tab(tab, models, dict(zip(names, values, strict=True)))
        finally:
            running.pop(request.session_hash, None)
            ended.set()

    def tell_end(request: gr.Request) -> Iterator[str]:
        if ended := running.get(request.session_hash):
            yield _paragraph("stopping …")
            ended.wait(_STOPPING)
        yield _paragraph("stopped")

    triggers = [start.click, *(x.submit for x in components.values() if isinstance(x, gr.Textbox))]
    event = gr.on(
        triggers, run, list(components.values()), outputs, show_progress="minimal",
        concurrency_id="shared" if tab.is_shared else "device", concurrency_limit=_USERS if tab.is_shared else 1,
        trigger_mode="once", api_visibility="private",
    )  # fmt: skip
    stop.click(None, cancels=[event])
    # The queue answers a browser in order, so that nothing that the job still shows replaces the word of its end.
    stop.click(
        tell_end, None, status, show_progress="hidden", concurrency_id="stop", concurrency_limit=None,
        api_visibility="private",
    )  # fmt: skip


def _make_input(field: Field, runs: Runs, missing: Sequence[str]):
    """Makes the component of a field, which can be used if nothing is missing."""
    import gradio as gr

    common = {"label": field.label, "info": field.info or None, "interactive": not missing}
    if isinstance(field, Number):
        whole = isinstance(field.default, int)
        return gr.Number(field.default, minimum=field.least, maximum=field.most, precision=0 if whole else None, **common)
    if isinstance(field, Choice):
        choices = field.list_choices(runs)
        return gr.Dropdown(choices, value=next(iter(choices), None), filterable=False, **common)
    if isinstance(field, Picture):
        upload = gr.Image(label=field.label, type="filepath", sources=["upload"], height=240, interactive=not missing)
        # The file as it was uploaded: gradio would decode it, and answer a damaged or a too large one by its own errors.
        upload.preprocess = lambda payload: payload.path if payload else None
        return upload
    return gr.Textbox(field.default, max_length=MAX_CHARACTERS, lines=1, max_lines=1, **common)


def run_tab(tab: Tab, models: Models, values: Mapping[str, Any]) -> Iterator[tuple]:
    """Runs a tab. Yields what the page shows: status, probabilities, pictures and command line.

    Errors of the user are the last status.
    """
    command = ""
    try:
        checked = tab.check(values, models.runs)
        command = shlex.join(tab.make_words(checked))
        for result in jobs.run(lambda job: tab.run(models, checked, job), tab.is_shared):
            pictures = [(str(file), caption) for file, caption in result.pictures]
            yield _paragraph(result.text), dict(result.shares or {}) or None, pictures, command
    except USER_ERRORS as error:
        yield _paragraph(" ".join(str(error).split()), is_error=True), None, [], command
    except Exception as error:  # a fault of ours, which shall not look like work that goes on
        log.exception("%s failed", tab.title)
        sentence = f"{type(error).__name__}: {error} (details are printed where the page was started)"
        yield _paragraph(sentence, is_error=True), None, [], command


def _paragraph(text: str, is_error: bool = False) -> str:
    """Formats a text that screen readers read when it changes."""
    return f'<p role="{"alert" if is_error else "status"}"{" class=error" * is_error}>{html.escape(text)}</p>'


def describe_missing(runs: Runs, missing: Sequence[str]) -> str:
    """Says which models are missing and by which commands they are made, as HTML."""
    parts = []
    for kind in missing:
        lines = html.escape("\n".join(runs.commands(kind)))
        sentence = f"There is no {KINDS[kind]} in {html.escape(str(runs.folder))}. This makes one:"
        parts.append(f"<p>{sentence}</p><pre>{lines}</pre>")
    return f'<div class="missing">{"".join(parts)}</div>'
