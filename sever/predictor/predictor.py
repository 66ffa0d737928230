"""Images -> probabilities of one or several models, while other threads read sheets and finish them."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from sever.base import BaseDataLoader
from sever.base.base_model import check_outputs_finite
from sever.parallel import collectives
from sever.parallel.out_of_memory import FOR_A_MODEL, in_prediction, memory_fault
from sever.predictor.concurrency import ReadAhead, in_order, thread_pool, to_host
from sever.predictor.ensemble import FLIPS, Member, RunningAverage, check_weights
from sever.utils.errors import DeviceError
from sever.utils.progress import progress

logger = logging.getLogger(__name__)

T = TypeVar("T")
Batch = tuple[torch.Tensor, torch.Tensor]  # images (N, 1, H, W) uint8 and their indices (N,)

MOST_THREADS = 8  # more would only wait for Python's lock
CHUNK_BYTES = 1 << 30


class Prediction(NamedTuple):
    """A sheet and what is predicted of it.

    Attributes:
        number: index of the sheet in its loader.
        sheet: (H, W) uint8 in [0, 255].
        probs: (C, H, W) float32 in [0, 1], or None if no model gives masks.
        label_probs: (C,) float32 in [0, 1], or None if no model gives labels.
        of_models: each model's own prediction, `masks` or `labels` or both; empty without `keep_each`.
    """

    number: int
    sheet: np.ndarray
    probs: np.ndarray | None
    label_probs: np.ndarray | None
    of_models: tuple[dict[str, np.ndarray], ...] = ()


@dataclass
class _Piece:
    """Sheets that go through the models together, and the averages of the predictions so far."""

    images: torch.Tensor
    indices: list[int]
    names: list[str]
    averages: dict[str, RunningAverage] = field(default_factory=dict)  # by kind of output
    of_models: list[dict[str, torch.Tensor]] = field(default_factory=list)
    finite: dict[str, torch.Tensor] = field(default_factory=dict)  # by checkpoint: (N,) bool


class Predictor:
    """Predicts the sheets of a loader with one model or an ensemble.

    On the CPU each sheet goes through the models in one thread, with as many sheets at a time as torch has
    threads: a convolution spread over threads waits for the slowest at each layer, and a batch fits into no
    cache. On a GPU batches go through whole. Other threads read, and call the `function` of `map`.

    Args:
        members: the models, or functions without arguments that load them (`at_once=False` only saves memory
            with functions). On the CPU several threads call a model's `forward` at the same time. Masks and
            labels are each averaged over the members that give them.
        device: the device to compute on.
        weights: weights of the members, at least 0; None weighs them alike. Weight 0 leaves a member out.
        average: `mean`, `rms`, `geometric`, `max` or `vote`; see `RunningAverage`.
        tta: `none`, `hflip`, `vflip` or `both`; see `FLIPS`. A model's flipped predictions are averaged by
            their mean, whatever `average` is.
        precision: `fp32`, `bf16` or `fp16` of the models; probabilities are float32 in any case.
        at_once: load all models now. False loads one after the other for each chunk of the sheets, whose
            averages are kept in main memory meanwhile; the numbers are the same, on a GPU within rounding.
            True becomes False where the models do not fit into the GPU's memory together.
        chunk_bytes: main memory for such a chunk, in bytes.
        keep_each: keep each model's own prediction too.

    Raises:
        ValueError: see `check_weights`.
        DeviceError: a single model does not fit into the GPU's memory.
    """

    def __init__(
        self,
        members: Sequence[Member | Callable[[], Member]],
        device: torch.device,
        *,
        weights: Sequence[float] | None = None,
        average: str = "mean",
        tta: str = "none",
        precision: str = "fp32",
        at_once: bool = True,
        chunk_bytes: int = CHUNK_BYTES,
        keep_each: bool = False,
    ) -> None:
        weighed = zip(members, check_weights(weights, len(members)), strict=True)
        self._members = [(member, weight) for member, weight in weighed if weight]
        self.flips = FLIPS[tta]
        self.average = average
        self.device = device
        self.precision = precision
        self.chunk_bytes = chunk_bytes
        self.keep_each = keep_each
        self._loaded: list[tuple[Member, float]] | None = None
        self._planes = 0  # float32 values kept per pixel of a chunk; known after the first chunk
        if at_once:
            try:
                self._loaded = [(self._load(member), weight) for member, weight in self._members]
            except DeviceError:
                if len(self._members) == 1:
                    raise
                logger.warning(
                    "The %d models do not fit into the GPU's memory together; taking one at a time",
                    len(self._members),
                )

    def predict(self, data_loader: BaseDataLoader, label: str = "") -> Iterator[Prediction]:
        """Predict sheet after sheet, in the loader's order; see `map`."""
        return self.map(lambda prediction: prediction, data_loader, label)

    def map(
        self, function: Callable[[Prediction], T], data_loader: BaseDataLoader, label: str = ""
    ) -> Iterator[T]:
        """Predict sheets and call a function with each prediction, in threads beside the models.

        Only a few sheets are in memory at a time. An exception in any thread is raised here. Several
        processes share the loader's batches: all must call this and iterate to the end. `function` is called
        in the process that predicts a sheet, and its result is sent to the main process.

        Args:
            function: called in several threads at the same time, in any order.
            data_loader: gives batches of images (N, 1, H, W) uint8 and their indices (N,).
            label: label of the progress bar; empty for none.

        Yields:
            The results of `function` in the loader's order; in the main process alone.

        Raises:
            CheckpointError: a model's outputs for a sheet are not finite.
        """
        world = collectives.world()
        data_loader.distribute_batches(world)
        found = self._map_own(function, data_loader, label)
        own = islice(data_loader.whole_batches, world.rank, None, world.size)
        of_batches = (list(islice(found, len(batch))) for batch in own)
        for results in collectives.gather_in_order(of_batches, data_loader.batch_count):
            yield from results

    def _map_own(
        self, function: Callable[[Prediction], T], data_loader: BaseDataLoader, label: str
    ) -> Iterator[T]:
        """Run `map` on this process's batches."""
        on_cpu, of_torch = self.device.type == "cpu", torch.get_num_threads()
        threads = min(of_torch, MOST_THREADS)
        each = max(1, of_torch // threads) if on_cpu else 1
        with ReadAhead(data_loader) as batches, thread_pool(threads, each) as pool:
            pieces = self._pieces(progress(batches, label), data_loader.sample_names)
            if self._loaded is None:
                groups = self._one_at_a_time(pool, pieces, function)
            else:
                groups = self._all_at_once(pool, pieces, function, self._loaded)
            yield from in_order(groups, most=2 * threads if on_cpu else 2)

    def _all_at_once(
        self,
        pool: ThreadPoolExecutor,
        pieces: Iterator[_Piece],
        function: Callable[[Prediction], T],
        members: Sequence[tuple[Member, float]],
    ) -> Iterator[list[Future[T]]]:
        def add_all(piece: _Piece) -> Callable[[int], T]:
            images = self._on_device(piece)
            for member, weight in members:
                self._add(piece, images, member, weight)
            return self._finish(piece, function)

        def whole(piece: _Piece) -> T:
            return add_all(piece)(0)

        for piece in pieces:
            if self.device.type == "cpu":  # a piece is one sheet, predicted and finished in one thread
                yield [pool.submit(whole, piece)]
            else:
                finish = add_all(piece)
                yield [pool.submit(finish, number) for number in range(len(piece.indices))]

    def _one_at_a_time(
        self, pool: ThreadPoolExecutor, pieces: Iterator[_Piece], function: Callable[[Prediction], T]
    ) -> Iterator[list[Future[T]]]:
        for chunk in self._chunks(pieces):
            for load, weight in self._members:
                member = self._load(load)

                def add(piece: _Piece, member: Member = member, weight: float = weight) -> None:
                    self._add(piece, self._on_device(piece), member, weight)

                for _ in pool.map(add, chunk) if self.device.type == "cpu" else map(add, chunk):
                    pass
                del member, add
            first = chunk[0]
            kept = sum(average.result()[0].numel() for average in first.averages.values())
            self._planes = max(1, kept // first.images[0].numel())
            while chunk:  # a piece is free as soon as its sheets are finished
                piece = chunk.pop(0)
                finish = self._finish(piece, function)
                yield [pool.submit(finish, number) for number in range(len(piece.indices))]

    def _chunks(self, pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
        """Chunks of `chunk_bytes`; the first is one piece, which shows how much is kept per pixel."""
        chunk: list[_Piece] = []
        size = 0
        for piece in pieces:
            chunk.append(piece)
            size += piece.images.numel() * (1 + 4 * self._planes)
            if not self._planes or size >= self.chunk_bytes:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _pieces(self, batches: Iterator[Batch], names: Sequence[str]) -> Iterator[_Piece]:
        for images, indices in batches:
            size = 1 if self.device.type == "cpu" else len(images)
            for of_piece, theirs in zip(images.split(size), indices.split(size), strict=True):
                yield _Piece(of_piece, theirs.tolist(), [names[index] for index in theirs.tolist()])

    def _load(self, member: Member | Callable[[], Member]) -> Member:
        with memory_fault(FOR_A_MODEL):
            loaded = member if isinstance(member, Member) else member()
            loaded.model.to(self.device).eval()
        return loaded

    def _on_device(self, piece: _Piece) -> torch.Tensor:
        with memory_fault(in_prediction(len(piece.images))):
            return piece.images.to(self.device, non_blocking=True)

    @torch.inference_mode()
    def _add(self, piece: _Piece, images: torch.Tensor, member: Member, weight: float) -> None:
        """Add a model's prediction to the averages of a piece."""
        kept_on = torch.device("cpu") if self._loaded is None else self.device
        with memory_fault(in_prediction(len(piece.images))):
            predicted = member.probabilities(images, self.flips, self.precision)
            predicted = {kind: probs.to(kept_on) for kind, probs in predicted.items()}
            for kind, probs in predicted.items():
                piece.averages.setdefault(kind, RunningAverage(self.average)).add(probs, weight)
        piece.finite[member.checkpoint] = ~next(iter(predicted.values())).flatten(1)[:, 0].isnan()
        if self.keep_each:
            piece.of_models.append(predicted)

    @torch.inference_mode()
    def _finish(self, piece: _Piece, function: Callable[[Prediction], T]) -> Callable[[int], T]:
        """After all models: the function that finishes a sheet, given by its number in the piece."""
        copies: list[torch.cuda.Event] = []
        averages = {kind: to_host(found.result(), copies) for kind, found in piece.averages.items()}
        of_models = [{kind: to_host(p, copies) for kind, p in each.items()} for each in piece.of_models]
        finite = {checkpoint: to_host(of_model, copies) for checkpoint, of_model in piece.finite.items()}

        def finish(number: int) -> T:
            for copied in copies:
                copied.synchronize()
            for checkpoint, of_model in finite.items():
                check_outputs_finite([of_model[number]], [piece.names[number]], checkpoint)
            masks, labels = (averages[k][number] if k in averages else None for k in ("masks", "labels"))
            each = tuple({kind: probs[number] for kind, probs in one.items()} for one in of_models)
            sheet = piece.images[number, 0].numpy()
            return function(Prediction(piece.indices[number], sheet, masks, labels, each))

        return finish
