_base_ = './flat-resnet33_shortest-paths.py'
model = dict(
    backbone=dict(
        type='SharedFlatResNet', sharing=dict(groups=['conv[12]'], bank=dict(type='TemplateBank', num_templates=4))
    )
)
