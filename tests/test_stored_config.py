"""A checkpoint holds its config, and the commands take from it what changes results."""

import json

import pytest
import torch
import yaml
from commands import ROOT, run_tool
from server import Server

from resnest_d2.config import ConfigError, InputError
from resnest_d2.config.settings import MAPPER, Settings
from resnest_d2.data.images import read_image
from resnest_d2.engine import load_config
from resnest_d2.inference import Predictor
from resnest_d2.weights import read_checkpoint
from resnest_d2.weights.stored_config import config_text, load_config_of_weights

DIGITS = str(ROOT / "configs/mask_resnest14_digits.yaml")
LAZY = str(ROOT / "configs/lazy/mask_resnest14_digits.py")
# Other than the file's, and each changes the boxes.
OTHER = [
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]"),
    *("INPUT.MIN_SIZE_TEST", "96", "TEST.DETECTIONS_PER_IMAGE", "7"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01"),
]
RUN = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()"]
LAZY_OTHER = [
    "model.proposal_generator.anchor_generator.sizes=[[8],[16],[32],[64],[128]]",
    f"{MAPPER}.augmentations.0.short_edge_length=96",
    "model.roi_heads.box_predictor.test_topk_per_image=7",
    "model.roi_heads.box_predictor.test_score_thresh=0.01",
]
LAZY_RUN = ["train.max_iter=2", "dataloader.train.total_batch_size=2", "train.device=cpu"]
LAZY_RUN += ["dataloader.test.dataset.names=[]"]


def trained(folder, tiny_digits, config, options):
    """The last checkpoint of two iterations."""
    result = run_tool(
        *("train_net.py", "--config-file", config, *options),
        DETECTRON2_DATASETS=str(tiny_digits),
    )
    assert result.returncode == 0, result.stderr
    return folder / "model_final.pth"


@pytest.fixture(scope="module")
def weights(tiny_digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("yaml run")
    return trained(folder, tiny_digits, DIGITS, [*OTHER, *RUN, "OUTPUT_DIR", folder])


@pytest.fixture(scope="module")
def lazy_weights(tiny_digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lazy")
    options = [*LAZY_OTHER, *LAZY_RUN, f"train.output_dir={folder}"]
    return trained(folder, tiny_digits, LAZY, options)


def boxes(cfg, tiny_digits):
    Settings.of(cfg).device = "cpu"
    image = read_image(tiny_digits / "digits/val/000001.png")
    return Predictor(cfg)(image)["instances"].pred_boxes.tensor


def test_checkpoints_hold_what_the_output_folder_holds(weights, lazy_weights):
    for file in (weights, lazy_weights):
        content = torch.load(file, weights_only=True)
        assert content["config"] == (file.parent / "config.yaml").read_text()
    for file in weights.parent.glob("model_*.pth"):
        assert torch.load(file, weights_only=True)["config"]


def test_the_checkpoints_settings_count_over_the_files(weights, tiny_digits, caplog):
    options = ["MODEL.WEIGHTS", str(weights)]
    expected = boxes(load_config(DIGITS, [*OTHER, *options]), tiny_digits)
    assert len(expected) == 7
    assert not torch.equal(expected, boxes(load_config(DIGITS, options), tiny_digits))
    for file in (DIGITS, ""):
        assert torch.equal(expected, boxes(load_config_of_weights(file, options), tiny_digits))
    (message,) = [m for m in caplog.messages if "differ" in m]
    assert message.startswith(f"{DIGITS} and the config in {weights} differ, and the latter counts")
    for part in (
        "MODEL.ANCHOR_GENERATOR.SIZES [[16], [32], [64], [128], [256]] -> [[8], [16], [32], [64]",
        "INPUT.MIN_SIZE_TEST 128 -> 96",
        "TEST.DETECTIONS_PER_IMAGE 20 -> 7",
    ):
        assert part in message
    assert not any(key in message for key in ("SOLVER", "OUTPUT_DIR", "WEIGHTS", "DATASETS"))


def test_an_option_counts_over_both(weights, caplog):
    options = ["MODEL.WEIGHTS", str(weights), "INPUT.MIN_SIZE_TEST", "64"]
    for file in (DIGITS, ""):
        cfg = load_config_of_weights(file, options)
        assert (cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (64, 7)
        # What is of the machine and the run is not taken over.
        assert cfg.OUTPUT_DIR == "./output"
        assert cfg.MODEL.DEVICE == "cuda"
        assert cfg.DATASETS.TEST == (("digits_val",) if file else ())
    assert "INPUT.MIN_SIZE_TEST" not in caplog.text
    # The same settings: nothing to say.
    caplog.clear()
    load_config_of_weights(DIGITS, [*OTHER, *options[:2]])
    assert not caplog.messages


def test_lazy_configs_too(lazy_weights, tiny_digits, caplog):
    options = [f"train.init_checkpoint='{lazy_weights}'"]
    expected = boxes(load_config(LAZY, [*LAZY_OTHER, *options]), tiny_digits)
    assert len(expected) == 7
    for file in (LAZY, ""):
        cfg = load_config_of_weights(file, options)
        assert torch.equal(expected, boxes(cfg, tiny_digits))
        assert cfg.train.output_dir == "./output"
        names = Settings.of(cfg).datasets("test")[1]
        assert names == (["digits_val"] if file else [])
    (message,) = [m for m in caplog.messages if "differ" in m]
    assert "model.roi_heads.box_predictor.test_topk_per_image 20 -> 7" in message
    assert f"{MAPPER}.augmentations [" in message
    assert "train." not in message
    option = "model.roi_heads.box_predictor.test_topk_per_image=3"
    cfg = load_config_of_weights(LAZY, [*options, option])
    assert len(boxes(cfg, tiny_digits)) == 3


def test_evaluation_with_and_without_a_config(weights, tiny_digits, tmp_path):
    found = []
    for name, config in (("full", [DIGITS, *OTHER]), ("base", [DIGITS]), ("none", [])):
        result = run_tool(
            *("train_net.py", "--eval-only", *(["--config-file"] if config else []), *config),
            *("MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path / name),
            *("DATASETS.TEST", "('digits_val',)"),
            DETECTRON2_DATASETS=str(tiny_digits),
        )
        assert result.returncode == 0, result.stderr
        results = (tmp_path / name / "inference/coco_instances_results.json").read_text()
        found.append([(r["image_id"], r["bbox"]) for r in json.loads(results)])
    assert len(found[0]) == 3 * 7
    assert found[0] == found[1] == found[2]


def test_the_command_predicts_without_a_config(weights, tiny_digits, tmp_path):
    images = ["--input", tiny_digits / "digits/val", "--output", tmp_path / "drawn"]
    result = run_tool("predict.py", *images, "--opts", "MODEL.WEIGHTS", weights)
    assert result.returncode == 0, result.stderr
    assert "3 of 3 inputs drawn" in result.stdout


def test_without_a_config_anywhere(weights, tmp_path):
    content = torch.load(weights, weights_only=True)
    old = tmp_path / "old.pth"
    torch.save({key: value for key, value in content.items() if key != "config"}, old)
    with pytest.raises(InputError, match=f"a config is needed .*{old} holds no config"):
        load_config_of_weights("", ["MODEL.WEIGHTS", str(old)])
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.read_bytes()[:10000])
    with pytest.raises(InputError, match=r"cut\.pth is damaged or cut off"):
        load_config_of_weights("", ["MODEL.WEIGHTS", f"{cut}?matching_heuristics=True"])
    with Server().running() as server, pytest.raises(OSError, match=r"x\.pth: HTTP 404"):
        load_config_of_weights("", ["MODEL.WEIGHTS", f"{server.url}x.pth"])
    with pytest.raises(
        InputError, match="a config is needed .--config-file, or --model., because no MODEL.WEIGHTS"
    ):
        load_config_of_weights("")
    with pytest.raises(FileNotFoundError, match=r"there is no file absent\.pth"):
        load_config_of_weights("", ["MODEL.WEIGHTS", "absent.pth"])
    options = ["MODEL.WEIGHTS", str(old)]
    assert load_config_of_weights(DIGITS, options) == load_config(DIGITS, options)


def test_configs_of_different_kinds(weights, lazy_weights, caplog):
    options = [f"train.init_checkpoint='{weights}'"]
    cfg = load_config_of_weights(LAZY, options)
    assert cfg.model == load_config(LAZY, options).model
    assert f"the config in {weights} is a YAML config and {LAZY} is a LazyConfig" in caplog.text
    cfg = load_config_of_weights(DIGITS, ["MODEL.WEIGHTS", str(lazy_weights)])
    assert cfg.INPUT.MIN_SIZE_TEST == 128
    assert caplog.messages[-1].endswith("is a YAML config: the file counts")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: !!python/object/apply:os.system ['touch ran']", "the tag !!python/object/apply"),
        ("model: {_target_: os.system, command: touch ran}", "calls os.system, which is none of"),
        ("MODEL: {}\n_BASE_: /etc/passwd", "key '_BASE_' can only be used in files"),
        ("MODEL: [", "is no YAML"),
        ("MODEL: {RESNETS: {RADUX: 2}}", "MODEL.RESNETS.RADUX"),
    ],
)
@pytest.mark.parametrize("config_file", ["", DIGITS])
def test_a_strangers_config_is_not_run(text, message, config_file, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": torch.zeros(1)}, "config": text}, "strange.pth")
    if config_file and text.startswith("model"):  # of another kind, it is not read further
        load_config_of_weights(config_file, ["MODEL.WEIGHTS", "strange.pth"])
        assert "the file counts" in caplog.text
        return
    with pytest.raises(ConfigError) as error:
        load_config_of_weights(config_file, ["MODEL.WEIGHTS", "strange.pth"])
    assert "the config in strange.pth" in str(error.value)
    assert message in str(error.value)
    assert not (tmp_path / "ran").exists()
    torch.save({"config": "model: {_target_: os.system}"}, "strange.pth")
    with pytest.raises(ConfigError, match="calls os.system"):
        load_config_of_weights(LAZY, ["train.init_checkpoint=strange.pth"])


def test_what_a_given_config_calls_may_be_called(lazy_weights, tmp_path):
    """A model of one's own trains from a .py config and is evaluated with it."""
    (tmp_path / "mine.py").write_text(
        f"from detectron2.config import LazyConfig, LazyCall as L\n"
        f"cfg = LazyConfig.load({LAZY!r})\n"
        "model, dataloader, train = cfg.model, cfg.dataloader, cfg.train\n"
        "optimizer, lr_multiplier = cfg.optimizer, cfg.lr_multiplier\n"
        'model.backbone.norm = L(__import__("collections").Counter)()\n'
    )
    mine = str(tmp_path / "mine.py")
    text = config_text(load_config(mine, ["model.roi_heads.num_classes=3"]))
    torch.save({"config": text}, tmp_path / "mine.pth")
    options = [f"train.init_checkpoint='{tmp_path / 'mine.pth'}'"]
    assert load_config_of_weights(mine, options).model.roi_heads.num_classes == 3
    for other in ("", LAZY):
        with pytest.raises(ConfigError, match="calls collections.Counter, which is none of"):
            load_config_of_weights(other, options)


def test_a_string_called_config_is_not_always_one(tmp_path):
    torch.save({"model": {}, "config": "configs/mine.yaml"}, tmp_path / "x.pth")
    options = ["MODEL.WEIGHTS", str(tmp_path / "x.pth")]
    assert load_config_of_weights(DIGITS, options) == load_config(DIGITS, options)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_published_checkpoints_hold_it(weights, lazy_weights, tiny_digits, tmp_path, ending):
    expected = boxes(load_config_of_weights("", ["MODEL.WEIGHTS", str(weights)]), tiny_digits)
    for number, source in enumerate((weights, lazy_weights)):
        alone = tmp_path / str(number) / "mine.pth"  # without config.yaml beside it
        alone.parent.mkdir()
        alone.symlink_to(source)
        result = run_tool("publish_checkpoint.py", alone, alone.parent, "--format", ending)
        assert result.returncode == 0, result.stderr
        published = result.stdout.split()[0]
        text = read_checkpoint(published)["config"]
        assert str(source.parent) not in text
        key = "train.init_checkpoint=" if number else "MODEL.WEIGHTS"
        options = [f"{key}'{published}'"] if number else [key, published]
        found = boxes(load_config_of_weights("", options), tiny_digits)
        if number == 0:
            assert torch.equal(found, expected)
            assert yaml.safe_load(text.replace("!!python/tuple", ""))["MODEL"]["RESNETS"]
        else:
            assert len(found) == 7
