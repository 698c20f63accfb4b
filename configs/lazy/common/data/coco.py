"""COCO 2017, RGB, with short sides of 640 to 800."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)

from resnest_d2.data.mapper import Mapper
from resnest_d2.engine import build_evaluator

dataloader = dict(
    train=L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_train"),
        mapper=L(Mapper)(
            is_train=True,
            augmentations=[
                L(T.ResizeShortestEdge)(
                    short_edge_length=(640, 672, 704, 736, 768, 800),
                    max_size=1333,
                    sample_style="choice",
                ),
                L(T.RandomFlip)(horizontal=True),
            ],
            image_format="RGB",
            use_instance_mask=True,
        ),
        total_batch_size=16,
        num_workers=4,
        # What Detectron2 makes a YAML config's sampler from; since December 2024 with the seed.
        cfg=dict(
            SEED="${oc.select:train.seed,-1}",
            DATALOADER=dict(
                SAMPLER_TRAIN="TrainingSampler",
                ASPECT_RATIO_GROUPING=True,
                NUM_WORKERS="${dataloader.train.num_workers}",
            ),
            SOLVER=dict(IMS_PER_BATCH="${dataloader.train.total_batch_size}"),
        ),
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
        mapper=L(Mapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
            image_format="${...train.mapper.image_format}",
        ),
        num_workers=4,
    ),
    evaluator=L(build_evaluator)(
        dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}/inference"
    ),
)
