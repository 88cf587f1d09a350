"""Unpacks what :mod:`mmshared.convert.packing` writes, by numpy and safetensors only: copy it to where the network
runs."""

import json
from operator import getitem

import numpy as np
from safetensors import safe_open

NAMES = (
    'absolute add arange broadcast_to concatenate diagonal divide exp flip greater greater_equal less less_equal '
    'matmul maximum minimum multiply negative power reciprocal reshape sign sqrt subtract take tanh tile transpose '
    'where'
)
OPERATIONS = {**{name: getattr(np, name) for name in NAMES.split()}, 'item': getitem, 'qr': np.linalg.qr}


def unpack(path):
    """The arrays of the plain network by their names, in float32."""
    with safe_open(path, 'numpy') as file:
        names = file.keys()
        values = {key: file.get_tensor(key) for key in names}
        program = json.loads(file.metadata()['plain'])
    for key in [key for key in names if key.endswith(':scale')]:
        values[key.removesuffix(':scale')] = values[key.removesuffix(':scale')] * values.pop(key)
    values = {key: each.astype('float32') if each.dtype == 'float16' else each for key, each in values.items()}

    def value(argument):
        listed = isinstance(argument, list)
        return list(map(value, argument)) if listed else values[argument] if isinstance(argument, str) else argument

    for name, operation, *arguments in program['steps']:
        compute = OPERATIONS[operation]
        values[name] = compute(*map(value, arguments))
    dropped = set(program['dropped'])
    return {key.removeprefix('plain:'): each for key, each in values.items() if key[0] != '%' and key not in dropped}
