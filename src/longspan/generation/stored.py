"""The settings of generation that a model keeps beside its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longspan.configuration import read_json
from longspan.errors import InputError
from longspan.generation.config import GENERATION_CONFIG_NAME, GenerationConfig

if TYPE_CHECKING:
    from longspan.checkpoints.hub import Source


class StoredGenerationConfig:
    """Gives a model the attribute `generation_config`, which is loaded and saved with it."""

    config: Any
    _generation_config: GenerationConfig | None = None
    _stored_generation_config: dict[str, Any] | None = None

    @property
    def generation_config(self) -> GenerationConfig:
        """How this model generates unless told otherwise: its `generation_config.json`, or what its `config` says.

        Raises:
            ConfigError: the file asks for something that longspan does not do; set another one.
        """
        if self._generation_config is None:
            stored = self._stored_generation_config
            if stored is None:
                return GenerationConfig.from_model_config(self.config)
            self._generation_config = GenerationConfig.from_dict(stored)
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        if not isinstance(value, GenerationConfig):
            raise InputError(f"generation_config must be a GenerationConfig. Received: {type(value).__name__}")
        self._generation_config = value

    def can_generate(self) -> bool:
        """True: the model has `generate`."""
        return True

    def _load_extra(self, source: Source) -> None:
        path = source.find(GENERATION_CONFIG_NAME)
        self._stored_generation_config = None if path is None else read_json(path)

    def _extra_files(self) -> dict[str, bytes]:
        if self._generation_config is None and self._stored_generation_config is None:
            return {}
        return {GENERATION_CONFIG_NAME: self.generation_config.to_json_string().encode("utf-8")}
