"""What models, data loaders and trainers have in common."""

from sever.base.base_data_loader import BaseDataLoader
from sever.base.base_metric import Metric
from sever.base.base_model import BaseModel, MasksAndLabels
from sever.base.base_trainer import BaseTrainer

__all__ = ["BaseDataLoader", "BaseModel", "BaseTrainer", "MasksAndLabels", "Metric"]
