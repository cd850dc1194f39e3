"""The one exception that this package raises for what a user can put right."""


class FlexIPError(ValueError):
    """A mistake in a file, a picture or a setting; its text is one sentence for the user: what, expected, do."""
