"""Every error that a user can cause or meet, as one family.

The command line turns each into one line on stderr; a program can catch `RemoeError`, or the kind that
it can do something about.
"""


class RemoeError(Exception):
    """Say what failed, where, and the way out where there is one."""


class ModelError(RemoeError):
    """A model file is damaged, hostile, or of a kind that cannot be run."""


class UnsupportedError(RemoeError):
    """The thing is understood and not possible here."""


class BudgetError(RemoeError):
    """The memory budget lies below the floor, which the message names in MiB."""


class ReadError(RemoeError):
    """Storage failed; the message names file, layer, expert and offset."""


class AbiError(RemoeError):
    """The installed llama-cpp-python is not the build that the extension was made for."""


class InputError(RemoeError):
    """An argument or an input file makes no sense."""
