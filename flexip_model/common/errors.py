"""The exception that this package raises for what a user can put right, and the kind of it that only a disk can."""


class FlexIPError(ValueError):
    """A mistake in a file, a picture or a setting; its text is one sentence for the user: what, expected, do."""


class UnreadableError(FlexIPError):
    """What lies on a disk is missing or damaged, whatever the settings are: work may go on without it."""
