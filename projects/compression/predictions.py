"""Write the file of annotations whose labels are what a classifier predicts on a folder of images."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from tqdm import tqdm

from mmshared import SharingError
from mmshared.engine.build import load_model
from mmshared.engine.checkpoint import write_text
from mmshared.engine.config import load_config
from mmshared_cli import errors_in_a_sentence


@errors_in_a_sentence()
@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config whose test data are annotated by a file')
    parser.add_argument('checkpoint')
    args = parser.parse_args()
    cfg = load_config(args.config)
    model = load_model(cfg, args.checkpoint)
    loader, dataset = cfg.test_dataloader, cfg.test_dataloader.dataset
    out = Path(dataset.data_root, dataset.ann_file)
    names = sorted(path.name for path in out.parent.glob('*') if path.suffix.lower() in ('.jpg', '.jpeg'))
    if not names:
        raise SharingError(f'{out.parent} has no JPEG images: README.md says where they come from.')
    with TemporaryDirectory() as folder:
        dataset.ann_file = str(Path(folder) / 'unknown.txt')
        Path(dataset.ann_file).write_text(''.join(f'{name} 0\n' for name in names))
        loader.dataset = DATASETS.build(dataset)
    loader.setdefault('collate_fn', dict(type='default_collate'))
    found = [each for batch in tqdm(Runner.build_dataloader(loader)) for each in model.test_step(batch)]
    write_text(out, ''.join(f'{name} {each.pred_label.item()}\n' for name, each in zip(names, found)))
    right = sum(each.pred_label.item() == number for number, each in enumerate(found))
    print(f'wrote {out}: {right / len(names):.1%} of the predictions are the numbers of the files, in their order')


if __name__ == '__main__':
    main()
