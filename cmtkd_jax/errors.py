"""The one exception that users are meant to read."""


class UserError(ValueError):
  """A mistake in the user's input, told in one line that names the field, its value and the mend.

  `main` prints the line without a stack trace and exits with status 2; anything else that is raised is our bug.
  """
