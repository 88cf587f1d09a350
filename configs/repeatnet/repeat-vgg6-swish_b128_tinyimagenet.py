_base_ = ['../_base_/models/repeat-vgg6-swish.py', '../_base_/repeatnet_tinyimagenet.py']
model = dict(head=dict(num_classes=200))
