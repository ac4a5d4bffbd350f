"""Models written as a user would write them: ``nn`` layers and the public API."""

from .bert import BertConfig, BertModel, SentenceEncoder
from .gpt2 import GPT2, GPT2Config, GPT2Model

__all__ = ["GPT2", "BertConfig", "BertModel", "GPT2Config", "GPT2Model", "SentenceEncoder"]
