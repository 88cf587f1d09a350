"""The course of a training in a line for each epoch."""

import sys
import time

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class ProgressHook(Hook):
    """Prints the mean loss of each epoch with the time that is left, and the first metric of each validation.

    Prints to stderr, so that the log on stdout can be left out.
    """

    priority = 'VERY_LOW'  # after the hook that notes the loss

    def before_train(self, runner) -> None:
        self._start, self._done = time.perf_counter(), runner.epoch

    def after_train_epoch(self, runner) -> None:
        epoch, epochs = runner.epoch + 1, runner.max_epochs
        loss = runner.message_hub.get_scalar('train/loss').mean(len(runner.train_dataloader))
        left = (time.perf_counter() - self._start) / (epoch - self._done) * (epochs - epoch)
        ahead = f', {left / 60:.1f} minutes left' if epoch < epochs else ''
        self._print(f'epoch {epoch} of {epochs}: loss {loss:.3f}{ahead}')

    def after_val_epoch(self, runner, metrics=None) -> None:
        for name, value in list((metrics or {}).items())[:1]:
            self._print(f'validation: {name} {value:.3f}')

    @master_only
    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
