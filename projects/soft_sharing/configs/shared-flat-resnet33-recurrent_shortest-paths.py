# One block, run 15 times.
_base_ = './flat-resnet33_shortest-paths.py'
model = dict(
    backbone=dict(type='SharedFlatResNet', sharing=dict(groups=['conv1', 'conv2'], bank=dict(type='TiedFilters')))
)
