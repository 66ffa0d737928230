"""What a config can name, by kind: where each kind lies, and which arguments the program passes."""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sever.config.schema import Section, Training
from sever.config.signatures import parameters
from sever.utils.did_you_mean import did_you_mean
from sever.utils.errors import ConfigError

_SHOWN = 40  # known names in a message


@dataclass(frozen=True)
class Nested:
    """An argument that holds sections of its own: a list of them, a mapping of names to them, or one.

    Attributes:
        registry: the kind of their things.
        section: their schema: `type`, `args` and further keys.
        make: (built thing, **further keys) -> what the constructor gets; None passes the thing itself.
    """

    registry: "Registry"
    section: type[Section] = Section
    make: Callable[..., Any] | None = None


class Registry:
    """The known things of one kind, by the name that a config uses.

    Known is what was registered, and every public class or function of the kind that its home module
    defines. Nothing is imported before a name is looked up.

    Example:
        >>> losses = Registry("loss", base="torch.nn.Module", home="sever.model.loss")
        >>> losses.find("BCEDiceLoss", "a.yml: loss").__module__
        'sever.model.loss'

    Args:
        kind: what messages call one of them, e.g. "loss".
        base: import path of the class that all classes of the kind derive from; None takes any callable.
        home: import path of the module to which one adds another.
        also: further modules that register things when they are imported.
        functions: whether functions of (output, target) are of the kind too; `build` binds the section's
            arguments to them.
        ready: names of the arguments that the program passes to `build` and a config cannot set, or a
            function that gives them.
    """

    def __init__(
        self,
        kind: str,
        base: str | None = None,
        home: str | None = None,
        also: Sequence[str] = (),
        functions: bool = False,
        ready: Collection[str] | Callable[[], Collection[str]] = (),
    ) -> None:
        self.kind = kind
        self.functions = functions
        self._base = base
        self._home = home
        self._also = also
        self._ready = ready
        self._registered: dict[str, Callable[..., Any]] = {}
        self._nested: dict[str, Mapping[str, Nested]] = {}
        self._refused: dict[str, str] = {}

    def register(
        self, thing: Any = None, name: str | None = None, nested: Mapping[str, Nested] | None = None
    ) -> Any:
        """Make a class or function known; also a decorator, with or without arguments.

        `name` is what configs call it, by default its own name; `nested` its arguments that hold sections.
        """
        if thing is None:
            return partial(self.register, name=name, nested=nested)
        self._registered[name or thing.__name__] = thing
        self._nested[name or thing.__name__] = nested or {}
        return thing

    def refuse(self, name: str, reason: str) -> None:
        """Say why a name that a user may expect cannot be used."""
        self._refused[name] = reason

    @property
    def base(self) -> type | None:
        """The class that all classes of the kind derive from."""
        return pkgutil.resolve_name(self._base) if self._base else None

    @property
    def ready(self) -> Collection[str]:
        """Names of the arguments that the program itself passes."""
        return self._ready() if callable(self._ready) else self._ready

    @property
    def known(self) -> dict[str, Callable[..., Any]]:
        """All things by name."""
        for module in self._also:
            importlib.import_module(module)
        home = vars(importlib.import_module(self._home)) if self._home else {}
        defined = {name: thing for name, thing in home.items() if name[0] != "_" and self._is_own(thing)}
        return {**defined, **self._registered}

    def _is_own(self, thing: Any) -> bool:
        """Whether the home module defines a thing, and it is of the kind."""
        if getattr(thing, "__module__", None) != self._home:
            return False
        if isinstance(thing, type):
            return self.base is not None and issubclass(thing, self.base) and thing is not self.base
        if not (self.functions and inspect.isfunction(thing)):
            return False
        return sum(p.default is p.empty for p in inspect.signature(thing).parameters.values()) >= 2

    def nested(self, name: str) -> Mapping[str, Nested]:
        """The arguments of a known thing that hold sections."""
        return self._nested.get(name, {})

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted(self.known)

    def find(self, name: str, where: str) -> Callable[..., Any]:
        """The thing of a registered name or an import path.

        Raises:
            ConfigError: the name is unknown, or what is imported is of another kind.
        """
        known = self.known
        if name in known:
            return known[name]
        if name in self._refused:
            raise ConfigError(
                f"{where}: '{name}' cannot be used: it {self._refused[name]}.{did_you_mean(name, known)}"
            )
        if "." not in name:
            names = sorted(known)
            more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
            raise ConfigError(
                f"{where}: '{name}' is not a known {self.kind}.{did_you_mean(name, known)}",
                f"  Known: {', '.join(names[:_SHOWN])}{more}. For one of your own write its import path, "
                f"e.g. my_pkg.my_module.{name[:1].upper() + name[1:]}.",
            )
        thing = _import(name, where)
        base = None if self.functions else self.base
        if base and not (isinstance(thing, type) and issubclass(thing, base)):
            raise ConfigError(
                f"{where}: '{name}' is no {self.kind}: expected a class derived from "
                f"{base.__module__}.{base.__qualname__}, received {thing!r}"
            )
        if not callable(thing):
            raise ConfigError(f"{where}: '{name}' is not a class or function but {thing!r}")
        return thing


def _import(path: str, where: str) -> Any:
    module_name, _, name = path.rpartition(".")
    if str(Path.cwd()) not in sys.path:  # a console script does not see the user's own folder
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's own code runs here
        raise ConfigError(f"{where}: '{path}' cannot be imported: {error}") from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(f"{where}: {module_name} has no '{name}'.{did_you_mean(name, public)}")
    return getattr(module, name)


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
    ready=("classes", "augmentation", "seed", "training", "pin_memory", "default_cache_dir"),
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
