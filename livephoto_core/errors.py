"""The one exception that livephoto_core raises for a user's mistake."""


class LivePhotoError(Exception):
    """A mistake of the user's that the user can mend.

    The message is one line: the cause, the value seen, the fix. The command line prints it and exits with code 2; a
    traceback is never shown for it.
    """


def first_line(error: Exception) -> str:
    """The first line of another library's message, or the error's kind where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
