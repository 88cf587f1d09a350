_base_ = './shortest-paths.py'
model = dict(type='PathNet', backbone=dict(type='FlatResNet', depth=33, width=16))
