"""Adapters in the formats of others: PEFT, GGUF, and the lossless one of a run."""
