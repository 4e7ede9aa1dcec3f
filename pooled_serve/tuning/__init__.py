"""What makes a request cheaper than stock, each with a switch."""
