"""Is it better: evidence, votes, statistics, the doctor and the report."""
