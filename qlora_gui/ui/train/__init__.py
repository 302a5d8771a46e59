"""The Train tab: the form, its memory, the data as it is learned, and the run that is live."""
