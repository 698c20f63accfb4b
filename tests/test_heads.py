"""Every kind of head in the zoo learns, detects and, where Detectron2 can, is tested augmented."""

import copy
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.solver import build_optimizer
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image

from resnest_d2 import model_zoo
from resnest_d2.engine.trainer import (
    Trainer,
    load_for_evaluation,
    prepare_to_train,
    with_augmentation,
)
from resnest_d2.modeling.deeplab import semantic_augmentations
from resnest_d2.modeling.detector import build_detector

SIZE = 128
# One zoo model for each kind of head or backbone.
MODELS = {
    "faster": "faster_resnest50",
    "faster dcn": "faster_resnest50_dcn",
    "dc5": "faster_resnest50_dc5",
    "mask": "mask_resnest50",
    "fast variant": "mask_resnest50_fast_2s2x40d",
    "cascade box": "cascade_box_resnest50",
    "cascade": "cascade_resnest50",
    "cascade 3x dcn": "cascade_resnest200_dcn_3x",
    "retinanet": "retinanet_resnest50",
    "keypoint": "keypoint_resnest50",
    "panoptic": "panoptic_resnest50",
    "panoptic cascade": "panoptic_resnest200_3x",
    "pointrend": "pointrend_resnest50",
    "deeplab": "deeplabv3plus_resnest50",
    "baseline": "baselines/mask_resnet50",
    "averaging cascade box": "mmdet/cascade_box_resnest50",
    "averaging cascade": "mmdet/cascade_resnest50",
}
AUGMENTED = {"faster", "mask", "cascade", "averaging cascade", "panoptic", "pointrend", "dc5"}


def small_config(kind, *opts):
    """The config of a kind or name, small enough for a test: the head's kind does not change."""
    name = MODELS.get(kind, kind)
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32, 128
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 64
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 64
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 128
    if "POINT_HEAD" in cfg.MODEL:
        cfg.MODEL.ROI_MASK_HEAD.FC_DIM, cfg.MODEL.POINT_HEAD.FC_DIM = 128, 64
    if "resnest" in name:
        cfg.MODEL.RESNETS.DEPTH = 14
        if cfg.MODEL.RESNETS.get("RES5_MULTI_GRID", None):
            cfg.MODEL.RESNETS.RES5_MULTI_GRID = [2]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 100
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.TEST.AUG.MIN_SIZES = (96, 128)
    cfg.merge_from_list(list(opts))
    return cfg


def batch(cfg):
    """Two images with a square each, in the format of the config's data."""
    inputs = []
    for index in range(2):
        image = torch.zeros(3, SIZE, SIZE)
        x = 20 + 30 * index
        image[:, x : x + 50, x : x + 50] = 255
        polygon = [x, x, x + 50, x, x + 50, x + 50, x, x + 50]
        annotation = {
            "bbox": [x, x, x + 50, x + 50],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 0,
            "segmentation": [np.array(polygon, float)],
        }
        if cfg.MODEL.KEYPOINT_ON:
            annotation["keypoints"] = np.array([[x + 2 * k, x + k, 2] for k in range(17)], float)
        instances = annotations_to_instances([annotation], (SIZE, SIZE), cfg.INPUT.MASK_FORMAT)
        sem_seg = torch.zeros(SIZE, SIZE, dtype=torch.long)
        sem_seg[x : x + 50, x : x + 50] = 1
        inputs.append({"image": image, "instances": instances, "sem_seg": sem_seg})
    return inputs


EXPECTED_LOSSES = {
    "mask": {"loss_mask"},
    "keypoint": {"loss_keypoint"},
    "panoptic": {"loss_sem_seg", "loss_mask"},
    "panoptic cascade": {"loss_sem_seg", "loss_mask", "loss_cls_stage2"},
    "pointrend": {"loss_mask", "loss_mask_point"},
    "cascade": {"loss_mask", "loss_cls_stage0", "loss_box_reg_stage2"},
    "averaging cascade": {"loss_mask_stage0", "loss_mask_stage2", "loss_cls_stage1"},
    "deeplab": {"loss_sem_seg"},
}
EXPECTED_OUTPUT = {
    "keypoint": {"instances"},
    "panoptic": {"sem_seg", "instances", "panoptic_seg"},
    "panoptic cascade": {"sem_seg", "instances", "panoptic_seg"},
    "deeplab": {"sem_seg"},
}


@pytest.mark.parametrize("kind", MODELS)
def test_one_step_of_training_and_one_inference(kind):
    cfg = small_config(kind)
    model = build_detector(cfg).train()
    optimizer = build_optimizer(cfg, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    with EventStorage():
        losses = model(batch(cfg))
    assert EXPECTED_LOSSES.get(kind, set()) <= set(losses)
    assert all(math.isfinite(loss.item()) for loss in losses.values()), losses
    sum(losses.values()).backward()
    optimizer.step()
    missed = [name for name in before if model.get_parameter(name).grad is None]
    # With the only detections in one place some heads may see no gradient, whole modules may not.
    assert not [n for n in missed if n.startswith("backbone.bottom_up")], missed
    moved = sum(not torch.equal(model.get_parameter(n), p) for n, p in before.items())
    assert moved > 0.8 * len(before)

    model.eval()
    with torch.no_grad():
        (output,) = model([{"image": batch(cfg)[0]["image"], "height": 64, "width": 64}])
    assert set(output) == EXPECTED_OUTPUT.get(kind, {"instances"})
    if "sem_seg" in output:
        assert output["sem_seg"].shape == (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 64, 64)
    if "panoptic_seg" in output:
        assert output["panoptic_seg"][0].shape == (64, 64)
    if "instances" in output:
        instances = output["instances"]
        assert len(instances) > 0
        assert (instances.pred_boxes.tensor <= 64).all()
        assert instances.has("pred_masks") == cfg.MODEL.MASK_ON
        if kind == "keypoint":
            assert instances.pred_keypoints.shape[1:] == (17, 3)


@pytest.mark.parametrize("kind", sorted(MODELS.keys() - {"deeplab"}))
def test_a_batch_without_objects_trains(kind):
    """As Detectron2's mapper gives it, also where a crop has removed them all."""
    cfg = small_config(kind)
    model, inputs = prepare_to_train(cfg, build_detector(cfg)).train(), batch(cfg)
    for one in inputs:
        one["instances"] = annotations_to_instances([], (SIZE, SIZE), cfg.INPUT.MASK_FORMAT)
    with EventStorage():
        losses = model(inputs)
    assert EXPECTED_LOSSES.get(kind, set()) <= set(losses)
    assert all(math.isfinite(loss.item()) for loss in losses.values()), losses
    sum(losses.values()).backward()
    if kind == "pointrend":
        assert losses["loss_mask"] == losses["loss_mask_point"] == 0
        assert all(p.grad is not None for p in model.roi_heads.mask_head.parameters())


@pytest.mark.parametrize("kind", sorted(AUGMENTED))
def test_augmented_inference(kind, tmp_path):
    cfg = small_config(kind)
    model = build_detector(cfg).eval()
    Image.fromarray(np.full((SIZE, SIZE, 3), 90, np.uint8)).save(tmp_path / "x.png")
    entry = {"file_name": str(tmp_path / "x.png"), "height": SIZE, "width": SIZE}
    augmented = with_augmentation(cfg, model)
    with torch.no_grad():
        (output,) = augmented([entry])
    assert len(output["instances"]) > 0
    assert output["instances"].has("pred_masks") == cfg.MODEL.MASK_ON
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE  # the model itself stays as it was


@pytest.mark.parametrize("kind", ["retinanet", "keypoint", "deeplab"])
def test_heads_without_augmentation_say_so(kind):
    cfg = small_config(kind)
    with pytest.raises(ValueError, match="TEST.AUG.ENABLED: Detectron2 has no augmentation"):
        with_augmentation(cfg, build_detector(cfg))
    cfg.TEST.AUG.ENABLED = True  # found out before anything is loaded or evaluated
    cfg.MODEL.WEIGHTS = "absent.pth"
    with pytest.raises(ValueError, match="TEST.AUG.ENABLED: Detectron2 has no augmentation"):
        load_for_evaluation(cfg, cfg.MODEL.WEIGHTS)


def test_deeplab_takes_images_of_any_size():
    model = build_detector(small_config("deeplab")).eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 100, 75)}])
    assert output["sem_seg"].shape == (150, 100, 75)


def test_deeplab_crops_and_schedule():
    cfg = small_config("deeplab", "INPUT.CROP.SIZE", "(64, 64)", "SOLVER.MAX_ITER", "100")
    scale, crop, flip = semantic_augmentations(cfg)
    assert (scale.short_edge_length, scale.max_size, scale.is_range) == ((256, 1024), 2048, True)
    assert flip.horizontal
    # Half of the map is one class, the other half shows every class: crops avoid the first.
    sem_seg = np.zeros((200, 200), np.uint8)
    sem_seg[:, 100:] = np.arange(200)[:, None]
    for _ in range(10):
        cropped = crop.get_transform(sem_seg, sem_seg).apply_segmentation(sem_seg)
        assert cropped.shape == (64, 64)
        assert np.bincount(cropped.ravel()).max() < 0.75 * 64 * 64
    cfg.SOLVER.WARMUP_ITERS = 0
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    for step in range(50):
        assert optimizer.param_groups[0]["lr"] == pytest.approx((1 - step / 100) ** 0.9)
        optimizer.step()
        scheduler.step()


@pytest.fixture
def tiny_semantic(tmp_path):
    """Four images, half black and half white, with a map of the halves."""
    entries = []
    for index in range(4):
        pixels = np.zeros((80, 100), np.uint8)
        pixels[:, : 30 + 10 * index] = 255
        image, sem_seg = tmp_path / f"{index}.png", tmp_path / f"{index}_map.png"
        Image.fromarray(np.stack([pixels] * 3, -1)).save(image)
        Image.fromarray(pixels // 255).save(sem_seg)
        entries.append(
            {"file_name": str(image), "sem_seg_file_name": str(sem_seg), "height": 80, "width": 100}
        )
    name = "tiny_semantic"
    DatasetCatalog.register(name, lambda: copy.deepcopy(entries))
    MetadataCatalog.get(name).set(
        stuff_classes=["black", "white"], evaluator_type="sem_seg", ignore_label=255
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_semantic_segmentation_is_trained_and_evaluated(tiny_semantic, tmp_path):
    """Data, crops, schedule, precise statistics and mIoU of a whole, short, training."""
    cfg = small_config(
        "deeplab",
        *("DATASETS.TRAIN", (tiny_semantic,), "DATASETS.TEST", (tiny_semantic,)),
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2, "MODEL.WEIGHTS", "", "OUTPUT_DIR", str(tmp_path)),
        *("DATALOADER.NUM_WORKERS", 0, "SOLVER.REFERENCE_WORLD_SIZE", 0, "SOLVER.MAX_ITER", 50),
        *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.WARMUP_ITERS", 0, "INPUT.CROP.SIZE", (64, 64)),
        *("INPUT.MIN_SIZE_TRAIN", (64, 96), "INPUT.MIN_SIZE_TEST", 80),
        *("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 3),
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    results = trainer._last_eval_results["sem_seg"]
    assert results["mIoU"] > 75  # all of one class would give 30; black and white are easy
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert saved["classes"] == {"stuff_classes": ["black", "white"]}
