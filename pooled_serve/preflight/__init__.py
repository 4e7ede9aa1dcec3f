"""Before the start: the project loaded in a child, servers asked, the plan."""
