"""Tries a training step and a validation on few images before a run, on copies."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils._pytree import tree_leaves

from sever.base import BaseDataLoader, BaseTrainer
from sever.base.base_model import forward
from sever.config.load import LoadedConfig
from sever.engine.checkpoint import loading
from sever.parallel.out_of_memory import IN_TRAINING, memory_fault
from sever.parallel.sharded_batch import Shard, named_losses
from sever.trainer.evaluate import Tally
from sever.trainer.trainer import Trainer
from sever.utils.errors import ConfigError
from sever.utils.seed import random_states, restore_random_states

_ENOUGH = 2  # images: a model that takes two takes more, as far as the memory goes


@dataclass(frozen=True)
class TriedStep:
    """The size of an image and the memory that it takes, as measured in the tried step.

    Attributes:
        image_size: the (height, width) of the inputs in pixels.
        bytes_per_image: what the forward pass keeps for the backward pass.
        bytes_of_state: what a checkpoint holds of the model and the optimizer.
    """

    image_size: tuple[int, ...]
    bytes_per_image: int
    bytes_of_state: int


def try_step(
    trainer: BaseTrainer, config: LoadedConfig, processes: int = 1, source: str | None = None
) -> TriedStep | None:
    """Train a step on images of the smallest batch of an epoch, move the schedule on, and validate an image.

    Trainer, model, optimizer and random numbers stay as they are. Nothing is tried where the trainer has a
    loop of its own, no step is left in its epoch, or the model or loss cannot be copied.

    Args:
        trainer: its checkpoint is loaded.
        config: the config of the trainer, for messages.
        processes: how many will share a batch.
        source: the checkpoint that was loaded, for messages.

    Returns:
        What was measured; None where nothing was tried.

    Raises:
        CheckpointError: the state of the optimizer or the schedule does not fit.
        ConfigError: the model cannot be trained on such a batch.
        DataError: an image cannot be read.
    """
    if not isinstance(trainer, Trainer) or type(trainer)._train_epoch is not Trainer._train_epoch:
        return None
    if trainer.is_finished or trainer.position.batches >= len(trainer.data_loader):
        return None  # a schedule may have ended with the last step
    before = random_states(trainer.device)
    try:
        model, optimizer, loss, lr_scheduler = _copies(trainer)
    except Exception:  # torch and users' own classes raise what they like where they cannot be copied
        return None
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
        saved = _SavedBytes(model)
        try:
            with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
                value = try_batch(inputs, masks)
            value.backward()
        except ValueError as error:
            if "Expected more than 1 value per channel" not in str(error):  # torch's words
                raise
            raise ConfigError(_batch_norm_message(config, len(inputs), processes)) from error
        with loading("optimizer", source):
            optimizer.step()
        if lr_scheduler is not None and not trainer.run_folder.is_new:  # the plan follows a new one
            with loading("lr_scheduler", source):
                _move_on(lr_scheduler)
                optimizer.step()  # with the rates that it set
        valid = trainer.valid_data_loader
        if valid is not None:
            model.eval()
            with torch.inference_mode():
                try_batch(*_batch(valid, valid.indices[:1].tolist(), trainer.device))
        tally.compute()
    restore_random_states(before, trainer.device)
    copies = 1 + (trainer.training.ema_decay is not None)
    of_state = copies * _bytes_in(model.state_dict()) + _bytes_in(optimizer.state_dict())
    return TriedStep(tuple(inputs.shape[2:]), saved.bytes // len(inputs), of_state)


def _bytes_in(state: Any) -> int:
    """The bytes of all tensors in a state."""
    return sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))


class _SavedBytes:
    """Counts the bytes that a forward pass keeps for the backward pass, without the model's own tensors."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
        self.bytes = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor whose memory was not counted before; what is kept stays where it is."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def _move_on(lr_scheduler: LRScheduler) -> None:
    monitored: tuple[Any, ...] = (0.0,) if isinstance(lr_scheduler, ReduceLROnPlateau) else ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch looks for its wrapper around the optimizer's step
        lr_scheduler.step(*monitored)


def _copies(trainer: Trainer) -> tuple[Any, ...]:
    """Model, optimizer, loss and schedule, which refer to each other as those of the trainer do."""
    parts = (trainer.model, trainer.optimizer, trainer.loss, trainer.lr_scheduler)
    copies = copy.deepcopy(parts)
    for name in vars(parts[1]).keys() - vars(copies[1]).keys() - {"step"}:  # torch leaves them out
        setattr(copies[1], name, copy.deepcopy(getattr(parts[1], name)))
    return copies


def _smallest(loader: BaseDataLoader, processes: int) -> list[int]:
    """The indices of a process's shard of the smallest batch of an epoch, at most `_ENOUGH`."""
    sizes = {len(batch): batch for batch in loader.whole_batches if len(batch) >= processes}
    smallest = sizes[min(sizes)]
    return smallest[: Shard.of(len(smallest), processes - 1, processes).images][:_ENOUGH]


def _batch(loader: BaseDataLoader, indices: Sequence[int], device: torch.device) -> Any:
    return loader.to_device(loader.collate_fn([loader.dataset[index] for index in indices]), device)


def _batch_norm_message(config: LoadedConfig, images: int, processes: int) -> str:
    of_each = f" for each of {processes} processes" if processes > 1 else ""
    return (
        f"{config.at('data_loader.args')}: a batch of an epoch has {images} image{of_each}, from which "
        f"BatchNorm can take no statistics in {config.checked.arch.type}: it sees one value per channel. Set "
        f"drop_last: true, or choose another batch_size"
    )
