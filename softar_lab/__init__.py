"""softAR Lab: see what happens when a language model runs on vectors instead of symbols."""

from .compare import compare
from .core import (
    threads,
)  # first: it says how PyTorch's threads wait, which they ask once, when PyTorch is loaded
from .core.predictor import Prediction, Predictor
from .core.store import CheckpointError, StoreError, load_vectors, save_vectors
from .data.corpora import Corpus, corpus_of, load_corpus, load_language
from .data.tokenizers.char import CharTokenizer
from .data.tokenizers.growing import GrowingTokenizer
from .data.tokenizers.subword import BPETokenizer
from .evidence import claim, masked, measured, scaled, setup, table
from .external.pretrained.load import load_pretrained
from .generation import Always, EveryK, Never, Trajectory, generate, stream
from .generation.config import GenerationConfig
from .models.config import ModelConfig
from .models.scoring import evaluate
from .models.soft_ar import SoftAR
from .models.window_memory.layout import Window
from .training.config import TrainConfig
from .training.heads import train_exits, train_levels
from .training.loop import Run, TrainingDiverged, train
from .training.mixing import train_mixing

__version__ = "0.1.0"
__all__ = [
    "Always",
    "BPETokenizer",
    "CharTokenizer",
    "CheckpointError",
    "Corpus",
    "EveryK",
    "GenerationConfig",
    "GrowingTokenizer",
    "ModelConfig",
    "Never",
    "Prediction",
    "Predictor",
    "Run",
    "SoftAR",
    "StoreError",
    "TrainConfig",
    "TrainingDiverged",
    "Trajectory",
    "Window",
    "claim",
    "compare",
    "corpus_of",
    "evaluate",
    "generate",
    "load_corpus",
    "load_language",
    "load_pretrained",
    "load_vectors",
    "masked",
    "measured",
    "save_vectors",
    "scaled",
    "setup",
    "stream",
    "table",
    "threads",
    "train",
    "train_exits",
    "train_levels",
    "train_mixing",
]
