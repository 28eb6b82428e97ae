"""Errors that the user can fix: the message names the cause and the remedy."""


class UserError(Exception):
    """A mistake of the user or of the surroundings; commands print its message and exit with `code`.

    Attributes:
        code: exit code, 2 for a user's mistake, 1 for a failure of the machine or of the run.
    """

    def __init__(self, message: str, *, code: int = 2) -> None:
        super().__init__(message)
        self.code = code
