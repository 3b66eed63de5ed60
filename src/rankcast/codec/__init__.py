"""Adapter ⇄ bytes: quantise, entropy-code, and cut so that every prefix is an adapter."""
