"""Auto classes: the family is read from the checkpoint's configuration."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from longspan.configuration import SOURCE_ARGUMENTS, PretrainedConfig
from longspan.models.inference import resolve_model_type
from longspan.models.registry import Framework, get_config_class, get_model_class


class AutoConfig:
    """Loads the configuration of any family."""

    def __init__(self) -> None:
        raise TypeError("AutoConfig is not made directly: use AutoConfig.from_pretrained or AutoConfig.for_model")

    @staticmethod
    def for_model(model_type: str, **kwargs: Any) -> PretrainedConfig:
        """A configuration of the family `model_type` with the given settings.

        Example:
            >>> from longspan import AutoConfig
            >>> AutoConfig.for_model("bert", hidden_size=48).hidden_size
            48
        """
        config: PretrainedConfig = get_config_class(model_type)(**kwargs)
        return config

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load a configuration of the right class.

        Args:
            pretrained_model_name_or_path: Directory, hub repository, or one JSON file.
            **kwargs: As in `PretrainedConfig.from_pretrained`; `model_type` for a checkpoint that names none.

        Raises:
            CheckpointNotFoundError: there is no such directory, repository or file.
            ConfigError: the model type is missing or unknown, or a keyword is no setting.
        """
        source = {name: kwargs[name] for name in SOURCE_ARGUMENTS if name in kwargs}
        content = PretrainedConfig.get_config_dict(pretrained_model_name_or_path, **source)
        given = kwargs.pop("model_type", None)
        config_class = get_config_class(resolve_model_type(content, pretrained_model_name_or_path, given, **source))
        return config_class.from_pretrained(pretrained_model_name_or_path, **kwargs)


class _AutoModel:
    """Picks the class of a family for one task in one framework."""

    task: ClassVar[str]
    framework: ClassVar[Framework] = "torch"

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"{name} is not made directly: use {name}.from_pretrained or {name}.from_config")

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Any:
        """A model with random weights.

        Args:
            config: Configuration of any family.
            **kwargs: Further arguments of the constructor.

        Raises:
            ConfigError: the family has no class for this task.
            MissingFrameworkError: the framework is not installed.
        """
        return get_model_class(config.model_type, cls.task, cls.framework)(config, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: PretrainedConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a model; the class follows from `model_type` in the checkpoint's `config.json`.

        Args:
            pretrained_model_name_or_path: Directory or hub repository.
            *model_args: Further positional arguments of the constructor.
            config: Configuration to use instead of the stored one.
            **kwargs: As in `from_pretrained` of the model class; `model_type` for a checkpoint that names none.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            ConfigError: the model type is unknown, or the family has no class for this task.
            MissingFrameworkError: the framework is not installed.
        """
        given = kwargs.pop("model_type", None)
        if config is None:
            source = {name: kwargs[name] for name in SOURCE_ARGUMENTS if name in kwargs}
            content = PretrainedConfig.get_config_dict(pretrained_model_name_or_path, **source)
            model_type = resolve_model_type(content, pretrained_model_name_or_path, given, **source)
        else:
            model_type = config.model_type
            kwargs["config"] = config
        model_class = get_model_class(model_type, cls.task, cls.framework)
        return model_class.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


class AutoModel(_AutoModel):
    """Loads the bare backbone of any family in PyTorch."""

    task: ClassVar[str] = "feature-extraction"


class AutoModelForPreTraining(_AutoModel):
    """Loads the heads of pre-training of any family in PyTorch."""

    task: ClassVar[str] = "pretraining"


class AutoModelForCausalLM(_AutoModel):
    """Loads a causal language model of any family in PyTorch."""

    task: ClassVar[str] = "text-generation"


class AutoModelForSeq2SeqLM(_AutoModel):
    """Loads an encoder-decoder language model of any family in PyTorch."""

    task: ClassVar[str] = "text2text-generation"


class AutoModelForMaskedLM(_AutoModel):
    """Loads a masked language model of any family in PyTorch."""

    task: ClassVar[str] = "fill-mask"


class AutoModelForNextSentencePrediction(_AutoModel):
    """Loads next sentence prediction of any family in PyTorch."""

    task: ClassVar[str] = "next-sentence-prediction"


class AutoModelForSequenceClassification(_AutoModel):
    """Loads a sequence classifier of any family in PyTorch."""

    task: ClassVar[str] = "text-classification"


class AutoModelForMultipleChoice(_AutoModel):
    """Loads a scorer of choices of any family in PyTorch."""

    task: ClassVar[str] = "multiple-choice"


class AutoModelForTokenClassification(_AutoModel):
    """Loads a token classifier of any family in PyTorch."""

    task: ClassVar[str] = "token-classification"


class AutoModelForQuestionAnswering(_AutoModel):
    """Loads extractive question answering of any family in PyTorch."""

    task: ClassVar[str] = "question-answering"


class AutoModelForTextEncoding(_AutoModel):
    """Loads the encoder of text of any family in PyTorch."""

    task: ClassVar[str] = "text-encoding"


class FlaxAutoModel(_AutoModel):
    """Loads the bare backbone of any family in Flax."""

    task: ClassVar[str] = "feature-extraction"
    framework: ClassVar[Framework] = "flax"


class FlaxAutoModelForPreTraining(_AutoModel):
    """Loads the heads of pre-training of any family in Flax."""

    task: ClassVar[str] = "pretraining"
    framework: ClassVar[Framework] = "flax"


class FlaxAutoModelForCausalLM(_AutoModel):
    """Loads a causal language model of any family in Flax."""

    task: ClassVar[str] = "text-generation"
    framework: ClassVar[Framework] = "flax"


class FlaxAutoModelForSeq2SeqLM(_AutoModel):
    """Loads an encoder-decoder language model of any family in Flax."""

    task: ClassVar[str] = "text2text-generation"
    framework: ClassVar[Framework] = "flax"


class FlaxAutoModelForMaskedLM(_AutoModel):
    """Loads a masked language model of any family in Flax."""

    task: ClassVar[str] = "fill-mask"
    framework: ClassVar[Framework] = "flax"


class FlaxAutoModelForNextSentencePrediction(_AutoModel):
    """Loads next sentence prediction of any family in Flax."""

    task: ClassVar[str] = "next-sentence-prediction"
    framework: ClassVar[Framework] = "flax"


class FlaxAutoModelForSequenceClassification(_AutoModel):
    """Loads a sequence classifier of any family in Flax."""

    task: ClassVar[str] = "text-classification"
    framework: ClassVar[Framework] = "flax"


class FlaxAutoModelForMultipleChoice(_AutoModel):
    """Loads a scorer of choices of any family in Flax."""

    task: ClassVar[str] = "multiple-choice"
    framework: ClassVar[Framework] = "flax"


class FlaxAutoModelForTokenClassification(_AutoModel):
    """Loads a token classifier of any family in Flax."""

    task: ClassVar[str] = "token-classification"
    framework: ClassVar[Framework] = "flax"


class FlaxAutoModelForQuestionAnswering(_AutoModel):
    """Loads extractive question answering of any family in Flax."""

    task: ClassVar[str] = "question-answering"
    framework: ClassVar[Framework] = "flax"


class TFAutoModel(_AutoModel):
    """Loads the bare backbone of any family in Keras."""

    task: ClassVar[str] = "feature-extraction"
    framework: ClassVar[Framework] = "keras"


class TFAutoModelForPreTraining(_AutoModel):
    """Loads the heads of pre-training of any family in Keras."""

    task: ClassVar[str] = "pretraining"
    framework: ClassVar[Framework] = "keras"


class TFAutoModelForCausalLM(_AutoModel):
    """Loads a causal language model of any family in Keras."""

    task: ClassVar[str] = "text-generation"
    framework: ClassVar[Framework] = "keras"


class TFAutoModelForSeq2SeqLM(_AutoModel):
    """Loads an encoder-decoder language model of any family in Keras."""

    task: ClassVar[str] = "text2text-generation"
    framework: ClassVar[Framework] = "keras"


class TFAutoModelForMaskedLM(_AutoModel):
    """Loads a masked language model of any family in Keras."""

    task: ClassVar[str] = "fill-mask"
    framework: ClassVar[Framework] = "keras"


class TFAutoModelForNextSentencePrediction(_AutoModel):
    """Loads next sentence prediction of any family in Keras."""

    task: ClassVar[str] = "next-sentence-prediction"
    framework: ClassVar[Framework] = "keras"


class TFAutoModelForSequenceClassification(_AutoModel):
    """Loads a sequence classifier of any family in Keras."""

    task: ClassVar[str] = "text-classification"
    framework: ClassVar[Framework] = "keras"


class TFAutoModelForMultipleChoice(_AutoModel):
    """Loads a scorer of choices of any family in Keras."""

    task: ClassVar[str] = "multiple-choice"
    framework: ClassVar[Framework] = "keras"


class TFAutoModelForTokenClassification(_AutoModel):
    """Loads a token classifier of any family in Keras."""

    task: ClassVar[str] = "token-classification"
    framework: ClassVar[Framework] = "keras"


class TFAutoModelForQuestionAnswering(_AutoModel):
    """Loads extractive question answering of any family in Keras."""

    task: ClassVar[str] = "question-answering"
    framework: ClassVar[Framework] = "keras"
