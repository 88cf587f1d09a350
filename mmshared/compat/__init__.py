"""What mmshared does about the packages below it, at once when it is imported. A config of a plain network may import
this module only for mmcv's operators."""

from typing import Any

import mmengine.logging
from mmengine.config.utils import MODULE2PACKAGE

from .mmcv_ops import supply

_print_log = mmengine.logging.print_log


def print_log(message: Any, *args: Any, **kwargs: Any) -> None:
    """mmengine's function, except for the message that OneDL's data sets are not installed. mmdet and mmpretrain log
    it for debugging at each start, and without a logger mmengine prints messages of any level."""
    if not str(message).startswith('Could not import OneDL'):
        _print_log(message, *args, **kwargs)


supply()
mmengine.logging.print_log = print_log
# Configs mmseg::... are found by the name of the module, whatever package installed it.
MODULE2PACKAGE['mmseg'] = 'mmseg'
