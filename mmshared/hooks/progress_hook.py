"""The course of a training in a line for each epoch, or for each twentieth of it."""

import math
import sys
import time

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop

from ..engine.runner import numbers_in


@HOOKS.register_module()
class ProgressHook(Hook):
    """Prints the mean loss of each epoch with the time that is left, and the first metric of each validation. A
    training that counts iterations has a line for each twentieth of them.

    Prints to stderr, so that the log on stdout can be left out.
    """

    priority = 'VERY_LOW'  # after the hook that notes the loss

    def before_train(self, runner) -> None:
        self._counts = isinstance(runner.train_loop, IterBasedTrainLoop)
        self._start, self._done = time.perf_counter(), runner.iter if self._counts else runner.epoch

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        done, total = runner.iter + 1, runner.max_iters
        part = math.ceil(total / 20)
        if self._counts and (done % part == 0 or done == total):
            self._report(runner, 'iteration', done, total, part)

    def after_train_epoch(self, runner) -> None:
        if not self._counts:
            self._report(runner, 'epoch', runner.epoch + 1, runner.max_epochs, len(runner.train_dataloader))

    def _report(self, runner, unit: str, done: int, total: int, iterations: int) -> None:
        loss = runner.message_hub.get_scalar('train/loss').mean(iterations)
        left = (time.perf_counter() - self._start) / (done - self._done) * (total - done)
        ahead = f', {left / 60:.1f} minutes left' if done < total else ''
        self._print(f'{unit} {done} of {total}: loss {loss:.3f}{ahead}')

    def after_val_epoch(self, runner, metrics=None) -> None:
        for name, value in list(numbers_in(metrics or {}).items())[:1]:
            self._print(f'validation: {name} {value:.3f}')

    @master_only
    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
