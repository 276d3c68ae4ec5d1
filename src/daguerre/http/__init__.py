"""The HTTP side: routes in one table, a file for each noun, wire formats, problems, the gate, the listening server."""
