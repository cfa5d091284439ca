"""softAR Lab: see what happens when a language model runs on vectors instead of symbols."""

from . import threads  # first: it says how PyTorch's threads wait, which they ask once, when PyTorch is loaded
from .adapters.hugging_face import load_pretrained
from .analysis.ways import compare
from .batches import TrainConfig
from .evaluation import evaluate
from .evidence import claim, masked, measured, scaled, setup, table
from .fitting import train_mixing
from .generation import Always, EveryK, Never, Trajectory, generate, stream
from .models.config import ModelConfig
from .models.soft_ar import SoftAR
from .models.window import Window
from .predictor import Prediction, Predictor
from .sources.corpora import Corpus, corpus_of, load_corpus, load_language
from .sources.tokenizers import BPETokenizer, CharTokenizer, GrowingTokenizer
from .store import CheckpointError, StoreError, load_vectors, save_vectors
from .training import Run, TrainingDiverged, train

__version__ = "0.1.0"
__all__ = [
    "Always",
    "BPETokenizer",
    "CharTokenizer",
    "CheckpointError",
    "Corpus",
    "EveryK",
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
    "train_mixing",
]
