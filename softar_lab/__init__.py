"""softAR Lab: see what happens when a language model runs on vectors instead of symbols."""

from .compare import compare
from .core import (
    threads,
)  # first: it says how PyTorch's threads wait, which they ask once, when PyTorch is loaded
from .core.predictor import Prediction, Predictor
from .core.store import CheckpointError, StoreError, load_vectors, save_vectors
from .data.corpora import Corpus, corpus_of, load_corpus, load_language
from .data.tasks import load_task
from .data.tokenizers.char import CharTokenizer
from .data.tokenizers.growing import GrowingTokenizer
from .data.tokenizers.subword import BPETokenizer
from .evidence import claim, masked, measured, scaled, setup, table
from .external.pretrained.adapt_config import AdaptConfig
from .external.pretrained.adapting import Adaptation, adapt
from .external.pretrained.load import load_pretrained
from .external.pretrained.low_rank import load_adapter
from .external.pretrained.prompted import prompted
from .external.pretrained.prompts import LearnedPrompt, load_prompt, tune_prompt
from .generation import Always, EveryK, Never, Trajectory, generate, stream
from .generation.config import GenerationConfig
from .memory import VectorMemory
from .models.config import ModelConfig
from .models.scoring import evaluate
from .models.soft_ar import SoftAR
from .models.window_memory.layout import Window
from .sweeps import sweep
from .training.config import TrainConfig
from .training.heads import train_exits, train_levels
from .training.loop import Run, TrainingDiverged, train
from .training.mixing import train_mixing
from .training.reinforcement import ReinforceConfig, reinforce
from .training.thoughts import train_thoughts

__version__ = "0.1.0"
__all__ = [
    "AdaptConfig",
    "Adaptation",
    "Always",
    "BPETokenizer",
    "CharTokenizer",
    "CheckpointError",
    "Corpus",
    "EveryK",
    "GenerationConfig",
    "GrowingTokenizer",
    "LearnedPrompt",
    "ModelConfig",
    "Never",
    "Prediction",
    "Predictor",
    "ReinforceConfig",
    "Run",
    "SoftAR",
    "StoreError",
    "TrainConfig",
    "TrainingDiverged",
    "Trajectory",
    "VectorMemory",
    "Window",
    "adapt",
    "claim",
    "compare",
    "corpus_of",
    "evaluate",
    "generate",
    "load_adapter",
    "load_corpus",
    "load_language",
    "load_pretrained",
    "load_prompt",
    "load_task",
    "load_vectors",
    "masked",
    "measured",
    "prompted",
    "reinforce",
    "save_vectors",
    "scaled",
    "setup",
    "stream",
    "sweep",
    "table",
    "threads",
    "train",
    "train_exits",
    "train_levels",
    "train_mixing",
    "train_thoughts",
    "tune_prompt",
]
