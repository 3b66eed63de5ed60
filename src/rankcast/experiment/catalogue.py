"""Finding experiments: folders that hold an `experiment.py`, loaded by path."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import rankcast
from rankcast.errors import ConfigError, nearest
from rankcast.experiment.spec import Experiment

_FILE = "experiment.py"


@dataclass(frozen=True)
class Catalogue:
    """The experiments in a folder.

    Attributes:
        folder: with a folder for each experiment.
    """

    folder: Path

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all experiments, sorted."""
        return tuple(sorted(file.parent.name for file in self.folder.glob(f"*/{_FILE}")))

    def load(self, name: str) -> Experiment:
        """Return an experiment.

        Raises:
            ConfigError: there is none of this name, or its file is not as it should be.
        """
        if name not in self.names:
            raise ConfigError(
                f"There is no experiment {name!r}{nearest(name, self.names) or '.'} "
                f"Known: {', '.join(self.names)}."
            )
        return load_experiment(self.folder, name)

    def load_all(self) -> tuple[Experiment, ...]:
        """Return all experiments: the paper's tables, its figures, then questions of ours."""
        loaded = (load_experiment(self.folder, name) for name in self.names)
        return tuple(
            sorted(loaded, key=lambda e: (e.source == "ours", not e.source.startswith("Table")))
        )

    def select(self, names: Sequence[str]) -> tuple[Experiment, ...]:
        """Return the experiments of these names, each once; all of them if there are no names."""
        if not names:
            return self.load_all()
        return tuple(self.load(name) for name in dict.fromkeys(names))

    def in_order(self, names: Iterable[str]) -> tuple[Experiment, ...]:
        """Return experiments and all that they need, what is needed before what needs it.

        Raises:
            ConfigError: a need that does not exist, or experiments that need one another.
        """
        found: dict[str, Experiment] = {}
        waiting = list(names)
        while waiting:
            name = waiting.pop(0)
            if name in found:
                continue
            found[name] = self.load(name)
            for need in (*found[name].needs, *found[name].beside):
                if need not in self.names:
                    hint = nearest(need, self.names) or "."
                    raise ConfigError(f"{name} needs {need!r}, which is no experiment{hint}")
            waiting += (*found[name].needs, *found[name].beside)
        sorter = TopologicalSorter({name: (*e.needs, *e.beside) for name, e in found.items()})
        try:
            return tuple(found[name] for name in sorter.static_order())
        except CycleError as error:
            circle = " → ".join(reversed(error.args[1]))
            raise ConfigError(f"Experiments need one another in a circle: {circle}.") from error


def find_experiments(folder: Path | None = None) -> Catalogue:
    """Return the experiments in a folder, or those around the working directory or the checkout.

    Raises:
        ConfigError: there are none.
    """
    if folder is not None:
        if not any(folder.glob(f"*/{_FILE}")):
            raise ConfigError(f"{folder} holds no experiments: no folder in it has an {_FILE}.")
        return Catalogue(folder.resolve())
    here = Path.cwd()
    checkout = Path(rankcast.__file__).parents[2]
    for place in (here, *here.parents, checkout):
        if any((place / "experiments").glob(f"*/{_FILE}")):
            return Catalogue((place / "experiments").resolve())
    raise ConfigError(
        "There are no experiments here. They come with the repository, not with the installed "
        "package: clone it and work inside it, or name their folder with --experiments DIR."
    )


def find_data(experiments: Path, given: Path | None = None) -> Path | None:
    """Return the folder of data sets: as given, `RANKCAST_DATA`, or `shared/data` further up.

    Raises:
        ConfigError: the folder named is not there.
    """
    named = given or (Path(text) if (text := os.environ.get("RANKCAST_DATA")) else None)
    if named is not None:
        if not named.is_dir():
            how = "--data" if given else "RANKCAST_DATA"
            raise ConfigError(f"{how} names {named}, which is no folder.")
        return named.resolve()
    places = (parent / "shared" / "data" for parent in experiments.resolve().parents)
    return next((place for place in places if place.is_dir()), None)


def load_experiment(folder: Path, name: str) -> Experiment:
    """Return the experiment that a file defines.

    Raises:
        ConfigError: the file does not run, or defines no `EXPERIMENT` of the folder's name.
    """
    file = folder / name / _FILE
    module_name = f"rankcast_experiment_{name}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} cannot be loaded.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ConfigError(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise ConfigError(f"{file} defines no EXPERIMENT = Experiment(…).")
    if experiment.name != name:
        raise ConfigError(
            f"{file} calls its experiment {experiment.name!r}; an experiment has its folder's "
            f"name, {name!r}."
        )
    return experiment
