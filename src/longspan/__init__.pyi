from .configuration import PretrainedConfig as PretrainedConfig
from .model_output import ModelOutput as ModelOutput
from .models.bert.config import BertConfig as BertConfig
from .models.bert.torch_model import BertForMaskedLM as BertForMaskedLM
from .models.bert.torch_model import BertForMultipleChoice as BertForMultipleChoice
from .models.bert.torch_model import BertForNextSentencePrediction as BertForNextSentencePrediction
from .models.bert.torch_model import BertForPreTraining as BertForPreTraining
from .models.bert.torch_model import BertForQuestionAnswering as BertForQuestionAnswering
from .models.bert.torch_model import BertForSequenceClassification as BertForSequenceClassification
from .models.bert.torch_model import BertForTokenClassification as BertForTokenClassification
from .models.bert.torch_model import BertLMHeadModel as BertLMHeadModel
from .models.bert.torch_model import BertModel as BertModel
from .models.bert.torch_model import BertPreTrainedModel as BertPreTrainedModel
from .nn.torch.base import PreTrainedModel as PreTrainedModel
from .nn.torch.cache import Cache as Cache
from .nn.torch.cache import DynamicCache as DynamicCache
from .nn.torch.cache import EncoderDecoderCache as EncoderDecoderCache
from .nn.torch.cache import StaticCache as StaticCache

__version__: str
