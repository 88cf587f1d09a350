from .mmcv_ops import supply

supply()
