"""Everything that answers "which ranks?" behind one protocol."""
