"""Serve a page on which detectors are tried on pictures, in a browser."""

import argparse
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import data, model_zoo
from ..config import import_extra, require_between
from ..config.load import check_device
from ..data.images import IMAGE_ENDINGS, read_header, read_image, set_max_pixels
from ..inference import Predictor, Result
from ..inference.drawing import import_to_draw
from ..inference.predictor import EXPORTED, check_source
from ..model_zoo.published import PUBLICATIONS
from . import INPUT_ERRORS, setting_up

if TYPE_CHECKING:
    import gradio

logger = logging.getLogger(__name__)

MAX_PIXELS = 50_000_000
DEMO = Path("output/demo")  # where `make demo` leaves its model
NUM_EXAMPLES = 6
KEPT = 2  # models in memory
KEPT_FILES = 50  # drawings
LEGIBLE = 640  # pixels of a drawing's longer side, at least
COLUMNS = ("class", "score", "left", "top", "right", "bottom")
FAILURES = (*INPUT_ERRORS, RuntimeError, MemoryError)
HELP = "Drop a picture, or take one with the camera. The first run with a model loads it."


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; the exit code is 2 if the arguments are wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        metavar="MODEL",
        help="checkpoints, folders of trainings or exported files to offer beside the zoo's models "
        f"(default: {DEMO}, if `make demo` has made it)",
    )
    add("--host", default="127.0.0.1", help="(default: %(default)s, this machine alone)")
    add("--port", type=int, default=7860, help="(default: %(default)s)")
    add("--device", help="as MODEL.DEVICE (default: a GPU, if there is one)")
    add("--examples", type=Path, metavar="DIR", help="pictures to offer (default: some digits)")
    text = f"refuse larger pictures (default: {MAX_PIXELS})"
    add("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help=text)
    args = parser.parse_args(arguments)
    with setting_up():
        require_between("--port", args.port, 1, 65535)
        set_max_pixels(args.max_pixels)
        own = args.models or ([str(DEMO)] if (DEMO / "model_final.pth").is_file() else [])
        for model in own:
            check_source(model)
        if args.device is not None:
            check_device("--device", args.device)
        page = build_page(own, args.device, list_examples(args.examples))
        page.queue(default_concurrency_limit=1)
        try:
            page.launch(
                server_name=args.host, server_port=args.port, quiet=True, prevent_thread_lock=True
            )
        except OSError as error:
            where = f"--host {args.host} --port {args.port}"
            raise OSError(
                f"{where} cannot be served: the port is taken, or the host is not this machine"
            ) from error
    print(f"The page is at http://{args.host}:{args.port}; Ctrl-C ends it", flush=True)
    page.block_thread()
    return 0


def list_examples(folder: Path | None) -> list[str]:
    """Pictures of a folder or, without one, digits if they can be made here.

    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.
    """
    if folder is None:
        try:
            folder = data.build_digits() / "val"
        except (ImportError, OSError) as error:
            logger.warning("There are no examples: %s", error)
            return []
    elif not folder.is_dir():
        raise FileNotFoundError(f"--examples: there is no folder {folder}")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        raise FileNotFoundError(f"--examples: folder {folder} holds no picture")
    return [str(file) for file in files[:NUM_EXAMPLES]]


class Detector:
    """The work behind the page.

    Args:
        device: as ``MODEL.DEVICE``.
    """

    def __init__(self, device: str | None = None) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="resnest_d2_web_")
        self._lock = threading.Lock()
        self._device = device
        self._load = lru_cache(KEPT)(self._open)

    def _open(self, name: str) -> Predictor:
        if Path(name).suffix in EXPORTED:  # which is optimised, and for the CPU
            return Predictor(name)
        return Predictor(name, device=self._device, optimize=True)

    def detect(self, model: str, file: str | None) -> Iterator[tuple[str, Result | None]]:
        """Run a model on a picture.

        Yields:
            what is being done, and the result at the end; None with the reason if there is none.
        """
        if not file:
            yield HELP, None
            return
        try:
            width, height = read_header(file).size
            image = read_image(file)
            yield f"Loading {model}; the first time this may download its weights.", None
            with self._lock:
                predictor = self._load(model)
            yield f"Running {model} on {width} x {height} pixels.", None
            start = time.perf_counter()
            (result,) = predictor.run([image])
        except FAILURES as error:
            reason = str(error) or type(error).__name__
            yield reason.replace(str(file), "The picture"), None
            return
        if "instances" not in result:
            yield f"{model} finds no instances, which this page shows.", None
            return
        seconds = time.perf_counter() - start
        yield f"{len(result.instances)} detections of any score in {seconds:.1f} s.", result

    def show(self, result: Result | None, threshold: float) -> tuple[Any, list[list[Any]], Any]:
        """Draw what is above a threshold, without running the model again.

        Returns:
            the files of the drawing and of COCO's results, and the rows of the table between.
        """
        if result is None:
            return None, [], None
        for old in sorted(Path(self.folder.name).iterdir(), key=os.path.getmtime)[:-KEPT_FILES]:
            shutil.rmtree(old, ignore_errors=True)  # Gradio has copied them long ago
        shown = result.above(threshold)
        folder = Path(tempfile.mkdtemp(dir=self.folder.name))
        drawn, results = folder / "detections.png", folder / "detections.json"
        shown.save(drawn, scale=max(1.0, LEGIBLE / max(shown.image.shape)))
        results.write_text(json.dumps(shown.to_coco()))
        corners = shown.instances.pred_boxes.tensor.tolist()
        scores = shown.instances.scores.tolist()
        rows = [
            [name, round(score, 3), *(round(value, 1) for value in box)]
            for name, score, box in zip(shown.names, scores, corners, strict=True)
        ]
        return str(drawn), rows, str(results)


def _as_dropped(preprocess: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    """Take the file of a picture as it was dropped, a broken one too, where Gradio opens it."""

    def path(payload: Any) -> str | None:
        if payload is None or (payload.url or "").startswith("data:"):
            return preprocess(payload)
        return payload.path

    return path


def build_page(own: Sequence[str], device: str | None, examples: Sequence[str]) -> "gradio.Blocks":
    """Lay the page out.

    Args:
        own: checkpoints and folders that are offered first.
        device: as ``MODEL.DEVICE``.
        examples: paths of pictures.

    Raises:
        ImportError: Gradio is not installed, or as :func:`import_to_draw`.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    gr = import_extra("gradio", "the page needs Gradio, which", "web")
    import_to_draw("detectron2.utils.visualizer")

    detector = Detector(device)
    # Those of the reference come last: their bucket is reported dead.
    published = sorted(PUBLICATIONS.keys() & set(model_zoo.names()), reverse=True)
    choices = [*own, *published]
    with gr.Blocks(
        analytics_enabled=False, title="ResNeSt detectors", delete_cache=(3600, 3600)
    ) as page:
        gr.Markdown("# ResNeSt detectors\nPictures stay on the machine that serves this page.")
        result = gr.State()
        with gr.Row():
            with gr.Column():
                model = gr.Dropdown(choices, value=choices[0], label="Model")
                picture = gr.Image(type="filepath", sources=["upload", "webcam"], label="Picture")
                picture.preprocess = _as_dropped(picture.preprocess)
                button = gr.Button("Detect", variant="primary")
                threshold = gr.Slider(0, 1, 0.5, step=0.01, label="Least score")
                if examples:
                    gr.Examples([[file] for file in examples], [picture], label="Examples")
            with gr.Column():
                status = gr.Markdown(HELP, elem_id="status")
                drawn = gr.Image(
                    type="filepath",
                    label="Detections",
                    interactive=False,
                    elem_id="drawn",
                    buttons=["fullscreen"],
                )
                table = gr.Dataframe(headers=list(COLUMNS), interactive=False, elem_id="table")
                with gr.Row():
                    png = gr.DownloadButton("PNG", elem_id="png")
                    coco = gr.DownloadButton("COCO JSON", elem_id="json")

        def show(found: Result | None, least: float) -> tuple[Any, ...]:
            file, rows, results = detector.show(found, least)
            return file, rows, file, results

        shown = [drawn, table, png, coco]
        run = button.click(detector.detect, [model, picture], [status, result])
        run.then(show, [result, threshold], shown, show_progress="hidden")
        threshold.release(show, [result, threshold], shown, show_progress="hidden")
    return page
