"""The Runs tab: all runs in a table, one opened, several against each other."""
