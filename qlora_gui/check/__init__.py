"""`--headless-check`: does this machine do what a run needs, tried in a minute with the program's own parts."""
