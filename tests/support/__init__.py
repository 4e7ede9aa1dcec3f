"""What the tests share: database servers, a proxy in front of them, a server process, a load."""
