"""hotcoco's report of an evaluation: AP by class, kinds of errors, calibration."""

import contextlib
import io
import json
import logging
from pathlib import Path

from ..config import import_extra


def write_report(annotations: Path, results: Path, task: str, file: Path, title: str) -> None:
    """Write a PDF of what was found and missed.

    Args:
        annotations: in COCO's format.
        results: COCO's results on them.
        task: "bbox" or "segm".
        file: the PDF.
        title: of its first page.

    Raises:
        MissingPackageError: hotcoco or Matplotlib is not installed.
    """
    library = import_extra("hotcoco", "demo", "report.pdf")
    plots = import_extra("hotcoco.plot", "demo", "report.pdf")
    found = json.loads(results.read_text())
    if task == "segm":
        # Where a prediction has a box, its area and not the mask's would decide what is small.
        found = [{key: value for key, value in one.items() if key != "bbox"} for one in found]
    truth = library.COCO(str(annotations))
    evaluation = library.COCOeval(truth, truth.load_res(found), task)
    with contextlib.redirect_stdout(io.StringIO()):  # its table is in the report
        evaluation.run()
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # fonts that it lacks
    plots.report(evaluation, save_path=file, title=title)
