"""How the bytes of a source file are found and read: local or remote, plain or compressed."""
