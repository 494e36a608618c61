"""The commands: parse, call, print. What a user can mend is raised as ``UserError``, which the command line prints."""
