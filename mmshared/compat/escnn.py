"""escnn without lie_learn, of which it needs one function, for rotations of space, and which is not to be had compiled
for NumPy 2."""

import importlib
import importlib.util
import sys
import types
import warnings
from types import ModuleType

from ..sharing import SharingError

_NEEDED = 'lie_learn.representations.SO3.wigner_d'


def import_escnn() -> ModuleType:
    """escnn with its ``gspaces`` and ``nn``.

    Raises:
        SharingError: If it is not installed.
    """
    if importlib.util.find_spec('escnn') is None:
        raise SharingError(
            'The steerable networks need escnn, which is not installed: pip install --no-deps escnn '
            '(what it needs for images is there already).'
        )
    with warnings.catch_warnings():
        # That py3nj is not there, for rotations of space too.
        warnings.filterwarnings('ignore', message='.*py3nj')
        try:
            importlib.import_module(_NEEDED)
        except ImportError:
            _supply_wigner_matrices()
        if 'escnn.nn' not in sys.modules:
            # Imported before, without lie_learn, escnn kept silent and left a half of itself.
            for name in [name for name in sys.modules if name.partition('.')[0] == 'escnn']:
                del sys.modules[name]
        importlib.import_module('escnn.nn')
        importlib.import_module('escnn.gspaces')
    return sys.modules['escnn']


def _supply_wigner_matrices() -> None:
    """Put modules in the place of lie_learn's, with a function that says what is missing when it is called."""

    def wigner_D_matrix(*args, **kwargs):
        raise ImportError('Rotations of space need lie_learn, which is not installed, or not for this NumPy.')

    names = _NEEDED.split('.')
    for end in range(1, len(names) + 1):
        module = types.ModuleType('.'.join(names[:end]))
        module.__path__ = []
        sys.modules[module.__name__] = module
    module.wigner_D_matrix = wigner_D_matrix
