"""What people, and LLM judges, prefer: votes, and what they say."""
