"""Sources in Parquet files."""
