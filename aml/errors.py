"""The one exception that means: what the user gave cannot be used."""


class UserError(ValueError):
    """Wrong input. Its text is one sentence: what came, what was wanted, what to do. The command line prints it and exits with 2."""
