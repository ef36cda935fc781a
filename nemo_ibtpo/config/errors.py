"""The one exception that ends a run with a single line for the user instead of a traceback."""


class UserError(ValueError):
    """Something that whoever started the run can mend.

    The message is one line that says what is wrong, where, and what would be right. The command line prints
    it on rank 0 and exits with status 2.
    """
