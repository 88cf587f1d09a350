"""Time a run of ONNX models on one image, in turn in one process, relative to the first."""

import argparse
from pathlib import Path

import numpy as np
import torch

from mmshared.analysis.speed import time_in_turn
from mmshared.convert.onnx import open_session
from mmshared_cli import errors_in_a_sentence, own_files


@errors_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('files', nargs='+', type=Path, metavar='FILE')
    parser.add_argument('--shape', nargs=2, type=int, default=[32, 32], metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--rounds', type=int, default=200)
    args = parser.parse_args()
    with own_files():
        sessions = {file: open_session(file.read_bytes()) for file in args.files}
    feed = {'images': np.random.default_rng(0).normal(size=(1, 3, *args.shape)).astype(np.float32)}
    works = {str(file): lambda session=session: session.run(None, feed) for file, session in sessions.items()}
    for file, timing in time_in_turn(works, args.rounds, torch.device('cpu')).items():
        print(f'{file}: {1e3 * timing.seconds:.2f} ms, {timing.ratio:.2f} of the first')


if __name__ == '__main__':
    main()
