"""Speed and memory, measured side by side in one run. `make bench` runs every module here."""
