"""The language of option files, and what is wrong with one."""
