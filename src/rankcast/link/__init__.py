"""The radio: what a link state carries, what a plan costs on it, how it changes."""
