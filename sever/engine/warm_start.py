"""A warm start: a new run that begins with the weights of a checkpoint, under a config of its own."""

import logging
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from sever.config.build import call
from sever.engine.checkpoint import load_weights
from sever.engine.optimizer_state import load_optimizer

logger = logging.getLogger(__name__)


def warm_start(trainer: Any, state: dict[str, Any], source: str) -> None:
    """Start a new run from a checkpoint's weights (the averaged ones, if it has them) and its epoch.

    Rates, weight decay and schedule are those of the trainer. The optimizer's moments are loaded where
    it is of the same kind with the same groups. The best epoch is found anew.

    Args:
        trainer: a `BaseTrainer` that has not trained yet.
        state: a checkpoint of a model of the same architecture.
        source: the checkpoint's name, for messages.

    Raises:
        CheckpointError: the architecture is another one, weights are not finite, or moments do not fit.
        ConfigError: the schedule fails before it reaches that epoch.
    """
    load_weights(trainer.model, state.get("ema") or state["state_dict"], source)
    old, own = state.get("optimizer"), trainer.optimizer.state_dict()
    if old is None:
        logger.info("The checkpoint holds no optimizer: it starts afresh.")
    elif state.get("optimizer_type") == type(trainer.optimizer).__name__ and _sizes(old) == _sizes(own):
        moments = {"state": old["state"], "param_groups": own["param_groups"]}
        load_optimizer(trainer.optimizer, moments, source)
    else:
        logger.info("The optimizer is of another kind or has other groups: it starts afresh.")
    trainer.last_epoch = state["epoch"]
    schedule = trainer.lr_scheduler
    if schedule is not None and not isinstance(schedule, ReduceLROnPlateau) and not trainer.is_finished:
        steps = -(-len(trainer.data_loader) // trainer.training.accumulate)
        for _ in range(trainer.last_epoch * (steps if trainer.lr_interval == "step" else 1)):
            call(schedule.step, "lr_scheduler", type(schedule).__name__)


def _sizes(optimizer: dict[str, Any]) -> list[int]:
    return [len(group["params"]) for group in optimizer["param_groups"]]
