"""Many prompts: rows in Parquet, by shard."""
