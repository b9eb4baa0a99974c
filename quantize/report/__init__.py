"""What `torchless bench` found, for people and programs: a table, a page, and files."""
