"""Evaluate an ONNX model that fold.py wrote of a detector or a classifier, by onnxruntime.

The data, their preprocessing and the evaluator are those of the config, which may be the shared network's or the plain
one's.
"""

import argparse
from importlib.util import find_spec

from mmshared_cli import add_cfg_options, errors_in_a_sentence, interrupts_in_a_sentence, load_run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config file, or its name')
    parser.add_argument('file', help='the ONNX model')
    parser.add_argument('--work-dir', help='folder for the log (default: work_dirs/ and the name of the config)')
    add_cfg_options(parser)
    parser.set_defaults(launcher='none', local_rank=0, loaders_without=None)
    args = parser.parse_args()
    if not find_spec('onnxruntime'):
        parser.error("this needs a package that is not installed: pip install 'mmshared[export]'")
    return args


@errors_in_a_sentence()
@interrupts_in_a_sentence()
def main() -> None:
    args = parse_args()
    from mmshared.convert.onnx_evaluation import evaluate_onnx
    from mmshared.engine.runner import check_config

    cfg = load_run(args)
    check_config(cfg, ['test_dataloader'])
    evaluate_onnx(cfg, args.file)


if __name__ == '__main__':
    main()
