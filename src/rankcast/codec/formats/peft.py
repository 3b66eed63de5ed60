"""Adapters on disk as PEFT and vLLM know them, read and written without torch."""

from rankcast.codec.formats.peft_config import CONFIG
from rankcast.codec.formats.peft_read import WEIGHTS, PeftSource, read_peft
from rankcast.codec.formats.peft_write import write_peft

__all__ = ["CONFIG", "WEIGHTS", "PeftSource", "read_peft", "write_peft"]
