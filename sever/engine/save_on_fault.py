"""Saving a run that ends early, and telling how to resume it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sever.parallel import collectives
from sever.parallel.device import memory_fault
from sever.utils.errors import DataError, PeerError, Stopped

_LESS_MEMORY = (
    "Lower data_loader.args.batch_size (training.accumulate makes up for it) or the augmentation's crop, or "
    "take training.precision bf16; where validation fails, lower data_loader.args.validation_batch_size"
)


@contextmanager
def how_to_resume(trainer: Any) -> Iterator[None]:
    """Where the training of a `BaseTrainer` ends early, save its state if possible, and say how to resume.

    Raises:
        DeviceError: there was too little memory.
        ReaderError: a process that reads samples has died.
    """
    loaders = [loader for loader in (trainer.data_loader, trainer.valid_data_loader) if loader is not None]
    try:
        with memory_fault(_LESS_MEMORY):
            yield
    except Stopped as stop:
        at, batches = trainer.position.batches, len(trainer.data_loader)
        where = f"in epoch {trainer.last_epoch + 1} after {at} of {batches} batches"
        _tell(trainer, f"The run was stopped {stop} {where if at else f'after epoch {trainer.last_epoch}'}.")
        raise
    except DataError:
        # All processes gather the state. Batches since the last step count twice in the epoch's log.
        together = collectives.world_size() == 1 or any(loader.ended_together for loader in loaders)
        if together and (trainer.position.batches or trainer.last_epoch):
            trainer.save_within_epoch()
            _tell(trainer, "The state before that is saved.")
        raise
    except PeerError:
        if not collectives.is_started_by_sever():  # the launcher tells it itself
            _tell(trainer)
        raise
    except RuntimeError as error:  # torch raises for a dead worker wherever the main process is
        for loader in loaders:
            if fault := loader.worker_status.fault(error, loader.sample_names):
                loader.end_workers()
                _tell(trainer)
                raise fault from error
        raise


def _tell(trainer: Any, what: str = "") -> None:
    newest = trainer.run_folder.newest_first
    if newest:
        trainer.logger.warning("%s", f"{what} To go on: sever train -r {newest[0]}".strip())
