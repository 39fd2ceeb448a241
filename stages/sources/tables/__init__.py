"""Sources in tables: which form a table has, and its rows."""
