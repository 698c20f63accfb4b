"""The backbone on its own terms: shapes, gradients, freezing, export, synchronised BN."""

import warnings

import pytest
import torch
from commands import context
from helpers import STAGES, assert_features_equal, image_shape, make_cfg, randomize
from torch import nn

import resnest_d2
from benchmarks.training import saved_bytes
from resnest_d2.config import ConfigError
from resnest_d2.modeling.grad_checkpoint import checkpoint_block
from resnest_d2.modeling.resnest import ResNeStBlock, make_resnest
from resnest_d2.modeling.sync_batchnorm import CpuSyncBatchNorm, replace_sync_batchnorm

SMALL = {"depth": 14, "out_features": ["stem", *STAGES]}
DCN = {
    "deform_on_per_stage": [False, True, True, True],
    "deform_modulated": True,
    "deform_num_groups": 2,
}
DCN_ALL = {"deform_on_per_stage": [True] * 4}


@pytest.mark.parametrize(("height", "width"), [(31, 96), (64, 33), (65, 96), (97, 33)])
@pytest.mark.parametrize("options", [{}, {"res5_dilation": 2}, {"avd": False, "avg_down": False}])
def test_output_shape_tells_the_truth(height, width, options):
    model = make_resnest(**SMALL, **options).eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, height, width))
    for name, shape in model.output_shape().items():
        size = (-(-height // shape.stride), -(-width // shape.stride))
        assert outputs[name].shape == (1, shape.channels, *size), name


@pytest.mark.parametrize("deep_stem", [True, False])
def test_any_number_of_input_channels(deep_stem):
    cfg = make_cfg("MODEL.RESNETS.DEPTH", 14, "MODEL.RESNETS.DEEP_STEM", deep_stem)
    model = resnest_d2.build_resnest_backbone(cfg, image_shape(4)).eval()
    assert model(torch.randn(1, 4, 64, 64))["res5"].shape == (1, 2048, 2, 2)


OPTIONS = [
    {},
    {"radix": 0},
    {"radix": 1},
    {"radix": 4, "num_groups": 2},
    {"avd": False},
    {"avd_first": True},
    {"avg_down": False},
    {"deep_stem": False},
    {"res5_dilation": 2},
    {"norm": ""},
    {"norm": "GN"},
    DCN,
    {**DCN, "radix": 0},
    DCN_ALL,
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_trainable_parameter_gets_a_gradient(options):
    model = make_resnest(**SMALL, **options)
    randomize(model)
    outputs = model(torch.randn(2, 3, 64, 64))
    sum(o.square().mean() for o in outputs.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A bias in front of a norm that takes its mean from the batch cancels.
        cancels = name.endswith("fc1.bias") and options.get("norm", "BN") == "BN"
        if options.get("norm") == "GN":  # of one channel a group, on a 1x1 map: all but its bias
            cancels = ".conv2.fc1." in name or name.endswith("bn1.weight")
        assert parameter.grad.abs().max() > 0 or cancels, name


def test_an_empty_batch_passes():
    model = make_resnest(**SMALL).eval()
    assert model(torch.randn(0, 3, 64, 64))["res5"].shape == (0, 2048, 2, 2)


def test_only_stages_that_are_used_are_built():
    model = make_resnest(50, out_features=["res3"])
    assert not hasattr(model, "res4")
    model(torch.randn(2, 3, 64, 64))["res3"].mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_traced_and_exported_equal_eager(options):
    model = make_resnest(**SMALL, **{"norm": "SyncBN", **options}).eval()
    randomize(model)
    x = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        expected = model(x)
        assert_features_equal(torch.jit.trace(model, x, strict=False)(x), expected, 1e-6)
        assert_features_equal(torch.export.export(model, (x,)).module()(x), expected, 1e-6)


@pytest.mark.parametrize("num_classes", [1, 10])
@pytest.mark.parametrize("features", [None, ["linear"], ["res3", "linear"]])
def test_classification_head(num_classes, features):
    model = make_resnest(14, num_classes=num_classes, out_features=features)
    output = model(torch.randn(2, 3, 64, 64))
    assert list(output) == (features or ["linear"])
    assert output["linear"].shape == (2, num_classes)
    assert model.output_shape()["linear"].channels == num_classes
    assert model.res5 is not None


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "nnSyncBN", "naiveSyncBN"])
def test_one_value_per_channel_is_explained(norm):
    model = make_resnest(**SMALL, norm=norm).train()
    with pytest.raises(ConfigError, match="cannot be trained on one image a process") as error:
        model(torch.randn(1, 3, 64, 64))
    for way_out in ("SOLVER.IMS_PER_BATCH", "SyncBN", "FrozenBN", "GN"):
        assert way_out in str(error.value)


@pytest.mark.parametrize("options", [{"norm": "FrozenBN"}, {"norm": "GN"}, {"freeze_at": 5}])
def test_one_image_trains_where_statistics_do_not_matter(options):
    model = make_resnest(**SMALL, **options).train()
    assert torch.isfinite(model(torch.randn(1, 3, 64, 64))["res5"]).all()


def test_sync_bn_alone_is_plain_batch_norm():
    synced, plain = CpuSyncBatchNorm(4), nn.BatchNorm2d(4)
    x = torch.randn(3, 4, 5, 5)
    assert torch.equal(synced(x), plain(x))
    assert torch.equal(synced.running_var, plain.running_var)
    assert torch.equal(synced.eval()(x), plain.eval()(x))


def test_sync_bn_is_detectron2s_and_is_replaced_whole_for_cpus():
    cfg = make_cfg("MODEL.RESNETS.NORM", "SyncBN", "MODEL.FPN.NORM", "SyncBN")
    fpn = resnest_d2.build_resnest_fpn_backbone(cfg, image_shape())
    assert type(fpn.fpn_output2.norm) is type(fpn.bottom_up.res5[0].conv2.bn1) is nn.SyncBatchNorm
    randomize(fpn)
    before = {name: value.clone() for name, value in fpn.state_dict().items()}
    parameters = dict(fpn.named_parameters())
    assert replace_sync_batchnorm(fpn) is fpn
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in fpn.modules())
    assert type(fpn.bottom_up.res5[0].conv2.bn1) is CpuSyncBatchNorm
    assert list(fpn.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in fpn.state_dict().items())
    assert all(value is parameters[name] for name, value in fpn.named_parameters())  # optimizers'
    assert type(replace_sync_batchnorm(nn.SyncBatchNorm(3))) is CpuSyncBatchNorm


def _sync_worker(rank, address, folder):
    """A step of DDP on this process's share of the images: one for rank 0, two for rank 1."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    model = replace_sync_batchnorm(make_resnest(14, norm="SyncBN", out_features=["res5"]).double())
    randomize(model)
    ddp = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    x = torch.load(f"{folder}/x.pt")
    out = ddp((x[:1], x[1:])[rank])["res5"]
    out.square().sum().backward()
    result = {"out": out.detach(), "grad": model.stem.conv1_1.weight.grad * 2}
    result["state"] = model.state_dict()
    torch.save(result, f"{folder}/{rank}.pt")


def test_sync_bn_in_a_cpu_process_group(tmp_path):
    """DDP over two processes, of which one sees one value per channel in bn1, equals one process.

    Outputs, gradients and running statistics are compared with plain batch norm over all images.
    """
    x = torch.randn(3, 3, 64, 64, dtype=torch.double)
    torch.save(x, tmp_path / "x.pt")
    address = f"file://{tmp_path}/rendezvous"
    workers = [
        context.Process(target=_sync_worker, args=(rank, address, str(tmp_path))) for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0, 0]

    model = make_resnest(14, norm="BN", out_features=["res5"]).double()
    randomize(model)
    expected = model(x)["res5"]
    expected.square().sum().backward()
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    out = torch.cat([r["out"] for r in results])
    torch.testing.assert_close(out, expected.detach(), rtol=1e-6, atol=1e-8)
    gradient = model.stem.conv1_1.weight.grad
    scale = gradient.abs().max()
    for result in results:
        torch.testing.assert_close(result["grad"] / scale, gradient / scale, rtol=0, atol=1e-6)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(result["state"][name], value, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "naiveSyncBN", "GN", "FrozenBN"])
def test_gradient_checkpointing_changes_nothing_but_memory(norm):
    plain = make_resnest(**SMALL, norm=norm, freeze_at=2).train()
    checkpointed = make_resnest(**SMALL, norm=norm, freeze_at=2, grad_checkpoint=True).train()
    randomize(plain)
    checkpointed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)

    for model in (plain, checkpointed):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sum(o.square().mean() for o in model(x).values()).backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-7, msg=name)
    for (name, a), b in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert saved_bytes(checkpointed, x) < 0.45 * saved_bytes(plain, x)


def test_checkpointing_can_be_compiled_around():
    model = make_resnest(14, out_features=["res4"], grad_checkpoint=True, freeze_at=2)
    torch.compile(model, backend="eager")(torch.randn(2, 3, 64, 64))["res4"].mean().backward()
    assert model.res3[0].conv1.weight.grad is not None


def test_checkpointing_skips_frozen_blocks_and_evaluation(monkeypatch):
    calls = []

    def spy(block, x):
        calls.append(block)
        return checkpoint_block(block, x)

    monkeypatch.setattr("resnest_d2.modeling.resnest.checkpoint_block", spy)
    model = make_resnest(**SMALL, freeze_at=2, grad_checkpoint=True)
    x = torch.randn(2, 3, 64, 64)
    model.eval()(x)
    with torch.no_grad():
        model.train()(x)
    assert not calls
    model.train()(x)
    assert calls == [model.res3[0], model.res4[0]]  # res5's are freed first anyhow


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"num_classes": 5, "out_features": ["res3"]}, "num_classes needs 'linear' in out_fea"),
        ({"out_features": ["linear"]}, r"out_features .*, got \['linear'\]"),
        ({"out_features": []}, r"out_features must name one or more of .*, got \[\]"),
        ({"deform_num_groups": 3, **DCN_ALL}, "deform_num_groups 3 must divide the bottleneck's"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        make_resnest(**{"depth": 14, **options})


def test_cardinality_must_divide_a_block_that_is_made_alone():
    with pytest.raises(ConfigError, match="num_groups 3 must divide the bottleneck's 10 channels"):
        ResNeStBlock(64, 64, bottleneck_channels=10, radix=0, num_groups=3)
