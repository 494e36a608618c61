"""The commands: parse, call, print. Errors that a user can fix are raised as ``UserError``, which the command line
prints."""
