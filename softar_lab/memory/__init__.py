"""What remembers vectors: exact search, encodings of texts, a trace graph, a knowledge base."""

from .vector_memory import Found, VectorMemory

__all__ = ["Found", "VectorMemory"]
