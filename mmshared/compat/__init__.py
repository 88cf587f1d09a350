from mmengine.config.utils import MODULE2PACKAGE

from .mmcv_ops import supply

supply()
# Configs mmseg::... are found by the name of the module, whatever package installed it.
MODULE2PACKAGE['mmseg'] = 'mmseg'
