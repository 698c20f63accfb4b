"""LazyConfigs that ship with Detectron2.

``detectron2.model_zoo.get_config`` reads them too, but cannot be imported with setuptools 81 or
newer, which have no ``pkg_resources``.
"""

from pathlib import Path

import detectron2
from detectron2.config import LazyConfig

FOLDER = Path(detectron2.__file__).parent / "model_zoo/configs/common/models"
mask_rcnn_fpn = LazyConfig.load(str(FOLDER / "mask_rcnn_fpn.py")).model
cascade_rcnn = LazyConfig.load(str(FOLDER / "cascade_rcnn.py")).model
