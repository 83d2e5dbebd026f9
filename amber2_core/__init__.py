"""What every stage agrees on: utterances, votes, the cache format, fusion, heads, losses, metrics and errors."""
