"""Configs of both kinds: their keys, reading them, and what the rest asks of them."""
