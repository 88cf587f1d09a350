# Shortest paths on grids of 32x32 cells, up to 20 steps in training and 40 in testing. Six minutes on one CPU core.
_base_ = ['mmpretrain::_base_/default_runtime.py', '../../../configs/_base_/mmshared.py']
model = dict(type='PathNet', backbone=dict(type='FlatResNet', depth=33, width=16))
phases = [(1, 4), (1, 8), (1, 12), (1, 16), (1, 20)]
test_distances = [(1, 4), (5, 8), (9, 12), (13, 16), (17, 20), (21, 24), (25, 28), (29, 32), (33, 36), (37, 40)]
batch_size, iterations = 16, 4000

train_dataloader = dict(
    batch_size=batch_size,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    # Read in order: one phase after the other, and no grid twice.
    sampler=dict(type='InfiniteSampler', shuffle=False),
    dataset=dict(type='ShortestPaths', num_samples=batch_size * iterations, distances=phases, seed=0),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ShortestPaths', num_samples=2000, distances=test_distances, seed=1),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='PathScore', distances=test_distances)
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=False, max_iters=iterations, val_interval=iterations // 5)  # after each phase
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=5e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(custom_keys={'coefficients': dict(decay_mult=0)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=100),
    dict(type='LinearLR', start_factor=1, end_factor=0.01, by_epoch=False, begin=iterations // 2, end=iterations),
]
randomness = dict(seed=0)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=iterations // 5, max_keep_ckpts=1))
