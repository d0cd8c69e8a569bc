"""The settings of generation that a model keeps beside its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.configuration import read_json
from longspan.errors import ConfigError, InputError
from longspan.generation.config import GENERATION_CONFIG_NAME, GenerationConfig

if TYPE_CHECKING:
    from longspan.checkpoints.hub import Source


class StoredGenerationConfig:
    """Gives a model the attribute `generation_config`, which is loaded and saved with it."""

    # kept in `vars`: an attribute of a Keras model that is a dict or a list would become one of Keras' own
    config: Any
    _generation_config: GenerationConfig | None = None
    _stored_generation_config: dict[str, Any] | None = None
    _generation_file: Path = Path(GENERATION_CONFIG_NAME)
    #: what was made of `config`, its content then, and what was found there
    _derived: tuple[GenerationConfig, dict[str, Any], dict[str, Any]] | None = None

    @property
    def generation_config(self) -> GenerationConfig:
        """How this model generates unless told otherwise: its `generation_config.json`, or what its `config` says.

        Raises:
            ConfigError: the file asks for something that longspan does not do; set another one.
        """
        if self._generation_config is None:
            if self._stored_generation_config is None:
                return self._follow_config()
            content, path = self._stored_generation_config, self._generation_file
            vars(self)["_generation_config"] = GenerationConfig.from_stored(content, path)
        config: GenerationConfig = vars(self)["_generation_config"]
        return config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        if not isinstance(value, GenerationConfig):
            raise InputError(f"generation_config must be a GenerationConfig. Received: {type(value).__name__}")
        vars(self)["_generation_config"] = value

    def _follow_config(self) -> GenerationConfig:
        """What `config` says now, as one object until that changes; once it is altered, it is the model's own."""
        made, content, before = self._derived or (None, None, None)
        if made is not None and made.to_dict() != content:
            vars(self)["_generation_config"] = made
            return made
        found = GenerationConfig.found_in(self.config)
        if made is None or found != before:
            made = GenerationConfig(**found)
            vars(self)["_derived"] = made, made.to_dict(), found
        return made

    @classmethod
    def can_generate(cls) -> bool:
        """True: models of this class have `generate`."""
        return True

    def _load_extra(self, source: Source) -> None:
        path = source.find(GENERATION_CONFIG_NAME)
        if path is not None:
            vars(self).update(_stored_generation_config=read_json(path), _generation_file=path)

    def _extra_files(self) -> dict[str, bytes]:
        try:
            text = self.generation_config.to_json_string()
        except ConfigError:  # it asks for what longspan does not do, and goes on to ask for it
            if self._stored_generation_config is None:
                return {}
            text = json.dumps(self._stored_generation_config, indent=2) + "\n"
        return {GENERATION_CONFIG_NAME: text.encode("utf-8")}
