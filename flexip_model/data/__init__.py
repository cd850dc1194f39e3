"""Training data: one format of tar shards with a Parquet index, and the commands that make and check it."""
