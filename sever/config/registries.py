"""Each kind of thing that a config names: where to add another, and which arguments the program passes."""

from sever.config.registry import Registry
from sever.config.schema import Training
from sever.config.signatures import parameters

MODELS = Registry("arch", "sever.base.BaseModel", "sever.model.model")
AUGMENTATIONS = Registry(
    "augmentation",
    "sever.data_loader.augmentation.pipelines.Augmentation",
    "sever.data_loader.augmentation.pipelines",
)
LOADERS = Registry(
    "data loader",
    "torch.utils.data.DataLoader",
    "sever.data_loader.data_loaders",
    ready=("classes", "augmentation", "seed", "training", "pin_memory"),
)
LOSSES = Registry(
    "loss",
    "torch.nn.Module",
    "sever.model.loss",
    also=["sever.model.combined_loss"],
    functions=True,
    ready=["classes"],
)
METRICS = Registry("metric", "sever.base.Metric", "sever.model.metric", functions=True, ready=["class_ids"])
OPTIMIZERS = Registry("optimizer", "torch.optim.Optimizer", "sever.model.optimizer", ready=["params"])
SCHEDULERS = Registry(
    "lr_scheduler",
    "torch.optim.lr_scheduler.LRScheduler",
    "sever.model.scheduler",
    ready=("optimizer", "steps_per_epoch"),
)


def _ready_for_trainers() -> list[str]:
    """All that the program's own trainer takes, and each setting of `training:` by its name."""
    return [*parameters(TRAINERS.find("Trainer", "")), *Training.model_fields]


TRAINERS = Registry("trainer", "sever.base.BaseTrainer", "sever.trainer.trainer", ready=_ready_for_trainers)

#: By the section of a config that names one.
REGISTRIES = {
    "arch": MODELS,
    "augmentation": AUGMENTATIONS,
    "data_loader": LOADERS,
    "loss": LOSSES,
    "metrics": METRICS,
    "optimizer": OPTIMIZERS,
    "lr_scheduler": SCHEDULERS,
    "trainer": TRAINERS,
}
