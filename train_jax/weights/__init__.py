"""Weight files of peers as arrays by name (`tensors`), and tables from their names to ours and back (`layout`)."""
