"""The one exception that livephoto_core raises for a user's mistake."""


class LivePhotoError(Exception):
    """A mistake of the user's that the user can mend.

    The message is one line: the cause, the value seen, the fix. The command line prints it and exits with code 2; a
    traceback is never shown for it.
    """


def first_line(error: Exception) -> str:
    """What an exception of another library says, short enough for one line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". :")[:200] if lines else type(error).__name__
