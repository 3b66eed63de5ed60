"""Engines that answer with an adapter: a folder with a command, or a vLLM server."""
