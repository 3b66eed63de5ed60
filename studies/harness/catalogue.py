"""Find studies: folders that hold a `study.py`, loaded by path."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from rankcast.errors import ConfigError, nearest
from studies.harness.spec import Study

OUR_STUDIES = Path(__file__).resolve().parents[1]
_FILE = "study.py"


@dataclass(frozen=True)
class Catalogue:
    """The studies in a folder.

    Attributes:
        folder: has a folder for each study.
    """

    folder: Path

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all studies, sorted."""
        return tuple(sorted(file.parent.name for file in self.folder.glob(f"*/{_FILE}")))

    def load(self, name: str) -> Study:
        """Return a study.

        Raises:
            ConfigError: there is none of this name, or its file is not as it should be.
        """
        if name not in self.names:
            raise ConfigError(
                f"There is no study {name!r}{nearest(name, self.names) or '.'} "
                f"Known: {', '.join(self.names)}."
            )
        return load_study(self.folder, name)

    def load_all(self) -> tuple[Study, ...]:
        """Return all studies: the paper's tables, its figures, then questions of ours."""
        loaded = (load_study(self.folder, name) for name in self.names)
        return tuple(
            sorted(loaded, key=lambda s: (s.source == "ours", not s.source.startswith("Table")))
        )

    def select(self, names: Sequence[str]) -> tuple[Study, ...]:
        """Return the studies of these names, each once; all of them if there are no names."""
        if not names:
            return self.load_all()
        return tuple(self.load(name) for name in dict.fromkeys(names))

    def in_order(self, names: Iterable[str]) -> tuple[Study, ...]:
        """Return studies and their inputs, each after what it takes as input.

        Raises:
            ConfigError: an input that does not exist, or studies that need one another.
        """
        loaded: dict[str, Study] = {}
        waiting = list(names)
        while waiting:
            name = waiting.pop(0)
            if name in loaded:
                continue
            loaded[name] = self.load(name)
            for need in loaded[name].inputs:
                if need not in self.names:
                    hint = nearest(need, self.names) or "."
                    raise ConfigError(f"{name} needs {need!r}, which is not a study{hint}")
            waiting += loaded[name].inputs
        sorter = TopologicalSorter({name: study.inputs for name, study in loaded.items()})
        try:
            return tuple(loaded[name] for name in sorter.static_order())
        except CycleError as error:
            circle = " → ".join(reversed(error.args[1]))
            raise ConfigError(f"Studies need one another in a circle: {circle}.") from error


def find_studies(folder: Path | None = None) -> Catalogue:
    """Return the studies in a folder; those of this checkout for None.

    Raises:
        ConfigError: there are none.
    """
    catalogue = Catalogue(OUR_STUDIES if folder is None else folder.resolve())
    if not catalogue.names:
        raise ConfigError(f"{folder} holds no studies: no folder in it has a {_FILE}.")
    return catalogue


def find_data(studies: Path, given: Path | None = None) -> Path | None:
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
    places = (parent / "shared" / "data" for parent in studies.resolve().parents)
    return next((place for place in places if place.is_dir()), None)


def load_study(folder: Path, name: str) -> Study:
    """Return the study that a file defines.

    Raises:
        ConfigError: the file does not run, or defines no `STUDY` of the folder's name.
    """
    file = folder / name / _FILE
    module_name = f"rankcast_study_{name}"
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
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise ConfigError(f"{file} defines no STUDY = Study(…).")
    if study.name != name:
        raise ConfigError(
            f"{file} calls its study {study.name!r}; a study has its folder's name, {name!r}."
        )
    return study
