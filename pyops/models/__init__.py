"""Example models, each taking its layers' namespace (`torch.nn` or `pyops.nn`) first.

One definition so serves both sides of every comparison, and `state_dict`s are interchangeable.
Layers without a counterpart in `pyops.nn` (Dropout, Embedding, …) come from `torch.nn`.
"""

from pyops.models.cnn import cnn
from pyops.models.diffusion import DDPM
from pyops.models.lstm import LSTMClassifier
from pyops.models.mlp import mlp
from pyops.models.transformer import Seq2SeqTransformer

__all__ = ["DDPM", "LSTMClassifier", "Seq2SeqTransformer", "cnn", "mlp"]
