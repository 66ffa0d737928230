"""Tries a training step and a validation on few images before a run, on copies."""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from sever.base import BaseDataLoader, BaseTrainer
from sever.config.load import LoadedConfig
from sever.engine.checkpoint import loading
from sever.parallel.out_of_memory import IN_TRAINING, memory_fault
from sever.parallel.sharded_batch import Shard, named_losses
from sever.trainer.evaluate import Tally, forward
from sever.trainer.trainer import Trainer
from sever.utils.errors import ConfigError
from sever.utils.seed import random_states, restore_random_states

_ENOUGH = 2  # images: a model that takes two takes more, as far as the memory goes


def try_step(trainer: BaseTrainer, config: LoadedConfig, processes: int = 1) -> None:
    """Train a step on images of the smallest batch of an epoch, and validate an image.

    Trainer, model, optimizer and random numbers stay as they are. A trainer with a loop of its own is not
    tried.

    Args:
        trainer: its checkpoint is loaded.
        config: the config of the trainer, for messages.
        processes: how many will share a batch.

    Raises:
        CheckpointError: the optimizer's state does not fit.
        ConfigError: the model cannot be trained on such a batch.
        DataError: an image cannot be read.
    """
    if not isinstance(trainer, Trainer) or type(trainer)._train_epoch is not Trainer._train_epoch:
        return
    before = random_states(trainer.device)
    model, optimizer, loss = copy.deepcopy((trainer.model, trainer.optimizer, trainer.loss))
    for name in vars(trainer.optimizer).keys() - vars(optimizer).keys() - {"step"}:  # torch leaves them out
        setattr(optimizer, name, copy.deepcopy(getattr(trainer.optimizer, name)))
    tally = Tally(trainer.metrics).empty_copy()

    def try_batch(inputs: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        outputs = forward(model, inputs, trainer.training.precision)
        targets = model.targets(masks)
        losses = named_losses(loss, outputs, targets)
        with torch.no_grad():
            tally.update(losses, model.probabilities(outputs), targets, len(inputs))
        return losses["loss"]

    with memory_fault(IN_TRAINING):
        inputs, masks = _batch(trainer.data_loader, _smallest(trainer.data_loader, processes), trainer.device)
        try:
            try_batch(inputs, masks).backward()
        except ValueError as error:
            if "Expected more than 1 value per channel" not in str(error):  # torch's words
                raise
            raise ConfigError(_no_statistics(config, len(inputs), processes)) from error
        with loading("optimizer", trainer.optimizer_from):
            optimizer.step()
        valid = trainer.valid_data_loader
        if valid is not None:
            model.eval()
            with torch.inference_mode():
                try_batch(*_batch(valid, valid.indices[:1].tolist(), trainer.device))
        tally.compute()
    restore_random_states(before, trainer.device)


def _smallest(loader: BaseDataLoader, processes: int) -> list[int]:
    """The indices of a process's shard of the smallest batch of an epoch, at most `_ENOUGH`."""
    sizes = {len(batch): batch for batch in loader.whole_batches if len(batch) >= processes}
    smallest = sizes[min(sizes)]
    return smallest[: Shard.of(len(smallest), processes - 1, processes).images][:_ENOUGH]


def _batch(loader: BaseDataLoader, indices: Sequence[int], device: torch.device) -> Any:
    return loader.to_device(loader.collate_fn([loader.dataset[index] for index in indices]), device)


def _no_statistics(config: LoadedConfig, images: int, processes: int) -> str:
    of_each = f" for each of {processes} processes" if processes > 1 else ""
    return (
        f"{config.at('data_loader.args')}: a batch of an epoch has {images} image{of_each}, from which "
        f"BatchNorm can take no statistics in {config.checked.arch.type}: it sees one value per channel. Set "
        f"drop_last: true, or choose another batch_size"
    )
