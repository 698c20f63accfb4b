"""What the training command asks for beside model, data and optimizer."""

train = dict(
    output_dir="./output",
    init_checkpoint="resnest://ImageNet/resnest50",
    max_iter=90000,
    amp=dict(enabled=False),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=5000, max_to_keep=100),
    precise_bn=dict(enabled=True, num_iter=200),
    clip_gradients=dict(enabled=False, clip_type="value", clip_value=1.0, norm_type=2.0),
    eval_period=0,
    log_period=20,
    seed=-1,
    device="cuda",
)
