from .configuration import PretrainedConfig as PretrainedConfig
from .models.bert.config import BertConfig as BertConfig

__version__: str
