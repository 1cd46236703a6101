"""The command line: parse, call, print. No logic, and no heavy import before a verb needs it."""
