"""The command line: a module a group of commands, with their options and help."""
