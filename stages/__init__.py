"""Pure transforms of Arrow tables, and the sources that records come from."""
