"""Imports escnn without lie_learn. escnn needs one function of it, only for 3D rotations, and there is no compiled
lie_learn for NumPy 2."""

import importlib
import importlib.util
import sys
import types
import warnings
from types import ModuleType

from ..sharing import SharingError

_NEEDED = 'lie_learn.representations.SO3.wigner_d'


def import_escnn() -> ModuleType:
    """Import escnn with its ``gspaces`` and ``nn``.

    Raises:
        SharingError: If it is not installed.
    """
    if importlib.util.find_spec('escnn') is None:
        raise SharingError(
            'The steerable networks need escnn, which is not installed: pip install --no-deps escnn '
            '(what it needs for images is there already).'
        )
    with warnings.catch_warnings():
        # The warning that py3nj is missing, which also is only for 3D rotations.
        warnings.filterwarnings('ignore', message='.*py3nj')
        try:
            importlib.import_module(_NEEDED)
        except ImportError:
            _supply_wigner_matrices()
        if 'escnn.nn' not in sys.modules:
            # An earlier import without lie_learn failed silently and left escnn half imported.
            for name in [name for name in sys.modules if name.partition('.')[0] == 'escnn']:
                del sys.modules[name]
        importlib.import_module('escnn.nn')
        importlib.import_module('escnn.gspaces')
    return sys.modules['escnn']


def _supply_wigner_matrices() -> None:
    """Replace lie_learn's modules by ones with a function that says what is missing when it is called."""

    def wigner_D_matrix(*args, **kwargs):
        raise ImportError('Rotations of space need lie_learn, which is not installed, or not for this NumPy.')

    names = _NEEDED.split('.')
    for end in range(1, len(names) + 1):
        module = types.ModuleType('.'.join(names[:end]))
        module.__path__ = []
        sys.modules[module.__name__] = module
    module.wigner_D_matrix = wigner_D_matrix
