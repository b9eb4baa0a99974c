"""One file a task: the class that runs the graph, and the functions that turn its numbers into answers."""
