"""Messages in a notebook: printed as on the command line, without passwords and keys."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from aml.errors import RunError, UserError
from orchestrator.utils import print_messages, redact

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def said_in_a_notebook(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return a function that prints what modules log, and whose errors hold no secrets."""

    @wraps(function)
    def told(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        print_messages()
        try:
            return function(*args, **kwargs)
        except (UserError, RunError) as error:
            error.args = (redact(error),)
            raise

    return told
