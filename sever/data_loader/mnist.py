"""The template's handwritten digits."""

from pathlib import Path

import torchvision

from sever.base import BaseDataLoader
from sever.config.registry import LOADERS
from sever.config.schema import BatchSize, Workers
from sever.parallel import collectives
from sever.utils.errors import DataError


@LOADERS.register
class MnistDataLoader(BaseDataLoader):
    """Handwritten digits, from the IDX files that torchvision reads or downloads.

    Args:
        data_dir: the files are in `MNIST/raw` under it.
        batch_size: digits in a batch.
        shuffle: draws another order each epoch.
        validation_split: a share in [0, 1), or a number of digits.
        num_workers: processes that read digits.
        seed: decides order and split (given by the program).
        training: False gives the test digits in a fixed order (given by the program).
        pin_memory: for a GPU (given by the program).
    """

    def __init__(
        self,
        data_dir: str,
        batch_size: BatchSize = 128,
        shuffle: bool = True,
        validation_split: float = 0.0,
        num_workers: Workers = 0,
        *,
        seed: int = 0,
        training: bool = True,
        pin_memory: bool = False,
    ) -> None:
        to_tensor, normalize = torchvision.transforms.ToTensor(), torchvision.transforms.Normalize
        # Mean and deviation of the training digits, as in https://github.com/pytorch/examples
        transform = torchvision.transforms.Compose([to_tensor, normalize((0.1307,), (0.3081,))])
        raw = Path(data_dir) / "MNIST" / "raw"
        try:
            with collectives.main_first():
                digits = torchvision.datasets.MNIST(data_dir, training, transform, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"data_loader.args.data_dir: the MNIST files are not in {raw} and could not be "
                f"downloaded ({error}). Put train-images-idx3-ubyte, train-labels-idx1-ubyte, "
                f"t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte there."
            ) from error
        except ValueError as error:
            raise DataError(f"{raw}: the MNIST files are damaged: {error}") from error
        super().__init__(
            digits,
            batch_size,
            shuffle and training,
            validation_split if training else 0,
            num_workers,
            seed=seed,
            keep_workers=training,
            pin_memory=pin_memory,
        )
