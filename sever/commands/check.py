"""`sever check`: would the competition accept a submission file? It needs no model, and loads no torch."""

import json
from pathlib import Path

from sever.data_loader.data_faults import raise_faults
from sever.data_loader.image_files import list_images, scan_headers
from sever.predictor.submission.rules import SIZE, check_submission
from sever.utils.files import write_file
from sever.utils.logger import print_lines
from sever.utils.outputs import JSON, Output, check_outputs


def check(
    submission: Path,
    sample_submission: Path | None,
    images: Path | None,
    size: tuple[int, int] | None,
    classes: int | None,
    reference: Path | None,
    reference_images: Path | None,
    against: Path | None,
    output: Path | None,
) -> bool:
    """Print what is wrong with a submission; return whether it would be accepted.

    The arguments are the options of `sever check`.
    """
    if output:
        check_outputs([Output("--json", output, JSON)], [submission, sample_submission, reference, against])
    count = len(list_images(reference_images, "--reference-images")) if reference_images else None
    found = check_submission(
        submission,
        classes=classes,
        sizes=_sizes_of(images) if images else None,
        size=size or SIZE,
        sample_submission=sample_submission,
        reference=reference,
        reference_images=count,
        against=against,
    )
    print_lines(found.lines())
    if output:
        write_file(output, json.dumps(found.as_dict(), indent=2) + "\n")
    return found.accepted


def _sizes_of(folder: Path) -> dict[str, tuple[int, int]]:
    names = list_images(folder, "-i")
    shapes, faults = scan_headers(folder, names)
    raise_faults(faults)
    return {name: (height, width) for name, (height, width) in zip(names, shapes.tolist(), strict=True)}
