"""Configs of both kinds: their keys, reading them, and what the rest asks of them."""


class InputError(ValueError):
    """What a user gave is wrong: a key, a value or a file, which the message names."""


class ConfigError(InputError):
    """A setting is wrong; the message names its key, the value and what is allowed."""
