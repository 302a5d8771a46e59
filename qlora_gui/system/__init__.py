"""What operating systems do differently: the one place that asks which of them this is."""
