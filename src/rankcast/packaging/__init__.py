"""Adapters in files: pack them, measure their prefixes, train them to code small, export them."""
