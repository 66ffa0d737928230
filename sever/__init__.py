"""sever: from steel images and a YAML file to the best possible submission.

Example:
    import sever

    model = sever.load("model_best.pth")
    found = model("sheet.jpg")
    found.defects  # a pandas table: a row for each defect
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sever.inference import Found, Model, load

__version__ = "0.1.0"
__all__ = ["Found", "Model", "load"]


def __getattr__(name: str) -> Any:
    """Import what predicts, and torch with it, when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'sever' has no attribute '{name}'")
    from sever import inference

    return getattr(inference, name)
