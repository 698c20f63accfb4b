#!/usr/bin/env python3
"""Serve a page on which detectors are tried on pictures, in a browser; ``make web`` runs this.

``examples/web.py [MODEL ...]`` offers checkpoints, trainings or exported files before the zoo.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gradio as gr

from resnest_d2 import Predictor, model_zoo
from resnest_d2.config import InputError
from resnest_d2.data.images import set_max_pixels
from resnest_d2.inference import Result
from resnest_d2.model_zoo.published import PUBLICATIONS

DEMO = Path("output/demo")  # where `make demo` leaves its model
MAX_PIXELS, MAX_FILE_SIZE = 50_000_000, "30mb"
LEGIBLE = 640  # pixels of a drawing's longer side, at least


def as_dropped(preprocess: Callable[[Any], str | None], payload: Any) -> str | None:
    """Give Gradio's file as it is, so that this page can say what is wrong with a broken one."""
    return payload.path if payload and payload.path else preprocess(payload)


@lru_cache(maxsize=2)
def load(model: str) -> Predictor:
    """Load a detector; the last two stay in memory."""
    return Predictor(model, optimize=Path(model).suffix not in (".onnx", ".pt2"))


def detect(model: str, file: str | None) -> Iterator[tuple[str, Result | None]]:
    """Run a model on a picture; say what is being done or is wrong, and give the result last."""
    yield f"Running {model}; the first time this loads it, and may download its weights.", None
    try:
        if not file:
            raise InputError("Drop a picture first, or take one with the camera.")
        predictor = load(model)
        if not predictor.finds_instances:
            raise InputError(f"{model} finds no instances, which this page shows.")
        result = predictor(file)
    except InputError as error:
        yield str(error).replace(str(file), "The picture"), None
        return
    yield f"{len(result)} detections of any score.", result


def show(result: Result | None, threshold: float) -> tuple[Any, list[list[Any]], str]:
    """Draw, list and write as COCO's results what is above a threshold."""
    if result is None:
        return None, [], ""
    shown = result.above(threshold)
    rows = [[one.name, round(one.score, 3), *(round(v, 1) for v in one.box)] for one in shown]
    scale = max(1.0, LEGIBLE / max(shown.image.shape))
    return shown.plot(scale, threshold), rows, shown.to_json()


def build_page(models: Sequence[str]) -> gr.Blocks:
    """Lay the page out; the first model is chosen."""
    # Those of the reference come last: their bucket is reported dead.
    zoo = sorted(PUBLICATIONS.keys() & set(model_zoo.names()))
    zoo.sort(key=lambda name: "wasabisys" in model_zoo.get_checkpoint_url(name))
    with gr.Blocks(analytics_enabled=False, title="ResNeSt detectors") as page:
        gr.Markdown("# ResNeSt detectors\nPictures stay on the machine that serves this page.")
        result = gr.State()
        with gr.Row():
            with gr.Column():
                model = gr.Dropdown([*models, *zoo], label="Model")
                picture = gr.Image(type="filepath", sources=["upload", "webcam"], label="Picture")
                picture.preprocess = partial(as_dropped, picture.preprocess)
                button = gr.Button("Detect", variant="primary")
                threshold = gr.Slider(0, 1, 0.5, step=0.01, label="Least score")
            with gr.Column():
                status = gr.Markdown("Drop a picture.", elem_id="status")
                drawn = gr.Image(format="png", label="Detections", elem_id="drawn")
                headers = ["class", "score", "left", "top", "right", "bottom"]
                table = gr.Dataframe(headers=headers, interactive=False, elem_id="table")
                coco = gr.Code(language="json", label="COCO's results", elem_id="json")
        shown = [drawn, table, coco]
        run = button.click(detect, [model, picture], [status, result], api_name="detect")
        run.then(show, [result, threshold], shown, show_progress="hidden", api_name="show")
        # While one is drawn, only the last of many changes counts.
        last = {"show_progress": "hidden", "trigger_mode": "always_last"}
        threshold.change(show, [result, threshold], shown, **last)
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM; files of visitors are removed then."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"(default: {DEMO}, if there)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 shows it to the network")
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args(arguments)
    set_max_pixels(MAX_PIXELS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="resnest_d2_web_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(args.models or [str(DEMO)] * (DEMO / "model_final.pth").is_file())
        page.queue(default_concurrency_limit=1)
        address = {"server_name": args.host, "server_port": args.port}
        page.launch(**address, max_file_size=MAX_FILE_SIZE, quiet=True, prevent_thread_lock=True)
        print(f"The page is at http://{args.host}:{args.port}; Ctrl-C ends it", flush=True)
        try:
            page.block_thread()
        finally:
            page.close()


if __name__ == "__main__":
    main()
