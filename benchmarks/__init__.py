"""Speed and size, measured against the floor and against peers; each benchmark prints a table and writes JSON."""
