"""Before the start: load the project in a child, ask the servers, make the plan."""
