"""A model in memory around an adapter on disk: to measure and to finish it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rankcast.adapters.fingerprint import check_base
from rankcast.codec.packing import Source, read_adapter
from rankcast.errors import ConfigError
from rankcast.finetune.config import FinetuneConfig
from rankcast.finetune.datasets import DatasetConfig, load_dataset
from rankcast.finetune.finish import learner_for
from rankcast.finetune.texts import DatasetSplits
from rankcast.finetune.transformer import TransformerLearner
from rankcast.run.config import load_preset
from rankcast.run.file_options import Texts


@dataclass(frozen=True, eq=False)
class Workplace:
    """An adapter, the texts that it is judged on, and how its model trains.

    Attributes:
        source: the adapter.
        config: of the model.
        splits: the texts.
    """

    source: Source
    config: FinetuneConfig
    splits: DatasetSplits

    def learner(self) -> TransformerLearner:
        """Return the model with the adapter on it.

        Raises:
            ModelError: another base model than the adapter was made for.
        """
        learner = learner_for(self.source.tensors, self.config, self.splits)
        check_base(learner.adapter.model, self.source.base.fingerprint, self.source.base.name)
        return learner


def workplace(folder: Path, texts: Texts) -> Workplace:
    """Return what is needed to run the adapter in a folder.

    A run knows its model and texts; of another adapter they have to be named.

    Raises:
        CodecError: no adapter there, or one that cannot be carried.
        ConfigError: model or texts are not known.
        DataError: the texts cannot be read.
    """
    source = read_adapter(folder)
    settings = next((p / "config.yaml" for p in (folder, folder.parent)
                     if (p / "config.yaml").is_file()), None)  # fmt: skip
    if settings is not None:
        run = load_preset(str(settings))
        config, data = run.finetune, run.data
        if texts.base_model is not None:
            config = replace(config, model=texts.base_model)
    else:
        model = texts.base_model or source.base.name
        if model is None or texts.texts is None:
            raise ConfigError(
                f"{folder} is no run of rankcast, so its model and texts are not known: name them "
                f"with --base-model and --texts."
            )
        causal = source.task.get("task_type") == "CAUSAL_LM"
        pooler = any("pooler" in name for name in source.tensors.modules)
        config = FinetuneConfig(
            model=model, objective="causal" if causal else "classification", train_pooler=pooler,
            orthogonality_weight=0.0,
        )  # fmt: skip
        data = DatasetConfig()
    if texts.texts is not None:
        label = texts.label_column if config.objective == "classification" else None
        data = DatasetConfig(source=texts.texts, text_column=texts.text_column, label_column=label)
    return Workplace(source, config, load_dataset(data))
