"""Weight files of any peer as arrays by name (`tensors`), and tables from their names to ours and back (`layout`)."""
