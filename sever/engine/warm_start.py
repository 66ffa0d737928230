"""A new run that goes on from another one's state under settings of its own."""

from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from sever.engine.checkpoint import load_weights


def warm_start(trainer: Any, state: dict[str, Any], source: str) -> None:
    """Go on from another run's weights and epoch under the settings of a trainer's own run.

    The weights are the averaged ones, where the checkpoint has them. Learning rates, weight decay and
    schedule are the trainer's; the optimizer's moments are loaded where the optimizer is of the same
    kind. What is best is found anew.

    Args:
        trainer: that has trained nothing yet.
        state: a checkpoint of a model of the same architecture.
        source: the checkpoint's name, for messages.

    Raises:
        CheckpointError: the architecture is another one.
    """
    load_weights(trainer.model, state.get("ema") or state["state_dict"], source)
    _load_moments(trainer, state)
    trainer.last_epoch = state["epoch"]
    if trainer.lr_scheduler is not None and not isinstance(trainer.lr_scheduler, ReduceLROnPlateau):
        trainer.optimizer.step()  # without gradients: only so that the schedule may move on
        per_epoch = trainer.steps_per_epoch() if trainer.lr_interval == "step" else 1
        for _ in range(trainer.last_epoch * per_epoch):
            trainer.lr_scheduler.step()


def _load_moments(trainer: Any, state: dict[str, Any]) -> None:
    old, own = state["optimizer"], trainer.optimizer.state_dict()
    if old is None:
        trainer.logger.info("The checkpoint holds no optimizer: it starts afresh.")
        return
    sizes = [[len(group["params"]) for group in s["param_groups"]] for s in (old, own)]
    if state["optimizer_type"] == type(trainer.optimizer).__name__ and sizes[0] == sizes[1]:
        trainer.optimizer.load_state_dict({"state": old["state"], "param_groups": own["param_groups"]})
    else:
        trainer.logger.info("The optimizer is of another kind or has other groups: it starts afresh.")
